"""The loop: batches and a base with slots go in, events come out."""
