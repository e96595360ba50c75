"""What the long benches share: workloads, the least work they need, the machine, child processes, pictures."""
