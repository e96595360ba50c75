"""The door is light: how long `luthier --help` and `import luthier` take, best of ten. The goal is 0.3 s.

python bench/door.py
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time

COMMANDS = {
    "luthier --help": [sys.executable, "-m", "luthier", "--help"],
    "import luthier": [sys.executable, "-c", "import luthier"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def seconds(command: list[str], times: int = 10) -> float:
    """The shortest of `times` runs."""
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    figures = {name: round(seconds(command), 3) for name, command in COMMANDS.items()}
    print(json.dumps({"python": platform.python_version(), "machine": platform.machine(), "seconds": figures}))
