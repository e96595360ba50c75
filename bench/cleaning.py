"""How many raw rows a second the Cleaner looks through, every detection on, one core; best of three.

python bench/cleaning.py FILE…   (rows of a jsonl, csv or parquet file, held in memory first)
"""

from __future__ import annotations

import json
import sys
import time

from luthier.data.cleaning import Cleaner
from luthier.data.sources import rows


def rate(name: str, times: int = 3) -> dict[str, object]:
    """Rows a second, characters a second, and rows found per step."""
    held = [(row, f"{file}:{line}") for row, file, line in rows(name)]
    size = sum(len(json.dumps(row, ensure_ascii=False)) for row, _ in held)
    best = float("inf")
    for _ in range(times):
        cleaner = Cleaner(())
        started = time.perf_counter()
        for row, where in held:
            cleaner.row(row, where)
        best = min(best, time.perf_counter() - started)
    found = {step: tally.rows for step, tally in cleaner.tallies.items()}
    per_row = round(size / len(held))
    return {
        "file": name,
        "rows": len(held),
        "rows/s": round(len(held) / best),
        "characters a row": per_row,
        "found": found,
    }


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(json.dumps(rate(each), ensure_ascii=False))
