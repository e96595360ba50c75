"""Near twins: luthier's numpy MinHash against datasketch, on the same shingles in one run.

python bench/twins.py [ROWS]      needs numpy and datasketch (pip install datasketch==2.0.0); default 20000

Made-up sentences of 14 words in an alphabet, in Korean and in Japanese; one in five is an edited copy of another one.
datasketch: MinHashLSH with our bands and the true Jaccard of what it proposes; and with the bands it chooses itself for
0.8 (128 values), its proposals taken as they are.
Recall: of the copies with a true Jaccard of 0.8 or more. Precision: of what was named. Written to results/twins.json.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasketch import MinHash, MinHashLSH

from luthier.data import twins

RESULT = Path(__file__).resolve().parent / "results" / "twins.json"
ALPHABETS = {
    "alphabet": "abcdefghijklmnopqrstuvwxyz",
    "korean": "".join(chr(0xAC00 + 28 * i) for i in range(300)),
    "japanese": "".join(chr(0x3041 + i) for i in range(80)) + "".join(chr(0x4E00 + i) for i in range(500)),
}
TURNS = 3


def texts_of(script: str, rows: int) -> tuple[list[str], list[int]]:
    """Sentences in normal form, and for each the row that it is an edited copy of, or -1."""
    rng, longest = random.Random(5), 9 if script == "alphabet" else 4
    words = ["".join(rng.choices(ALPHABETS[script], k=rng.randint(2, longest))) for _ in range(5000)]
    said: list[list[str]] = []
    copies = []
    for row in range(rows):
        copies.append(rng.randrange(row) if row and rng.random() < 0.2 else -1)
        if copies[-1] < 0:
            said.append(rng.choices(words, k=14))
            continue
        edited = list(said[copies[-1]])
        for _ in range(rng.choice((1, 1, 2))):
            edited[rng.randrange(14)] = rng.choice(words)
        said.append(edited)
    space = "" if script == "japanese" else " "
    return [twins.normal(space.join(words)) for words in said], copies


def ours(texts: list[str]) -> np.ndarray:
    """An earlier near twin of each row, or -1."""
    rows = twins.compared(texts)
    return twins.partners(rows, rows, before=True)


def theirs(texts: list[str], same_bands: bool) -> np.ndarray:
    """The same by datasketch, on the same shingles: with our bands and the true Jaccard of what it proposes, or as it
    comes, with the bands it chooses for the threshold."""
    shingles = twins.shingle(texts)
    stretches = [shingles.values_S[a:b] for a, b in zip(shingles.starts_N1, shingles.starts_N1[1:], strict=False)]
    bands = (twins.BANDS, twins.HASHES)
    values = bands[0] * bands[1] if same_bands else 128
    index = MinHashLSH(num_perm=values, params=bands) if same_bands else MinHashLSH(twins.NEAR, num_perm=values)
    sets = [frozenset(stretch.tolist()) for stretch in stretches] if same_bands else []
    found = np.full(len(texts), -1)
    for row, stretch in enumerate(stretches):
        sketch = MinHash(num_perm=values, hashfunc=int)
        sketch.update_batch(stretch.tolist())
        for other in index.query(sketch):
            if not same_bands or len(sets[row] & sets[other]) / len(sets[row] | sets[other]) >= twins.NEAR:
                found[row] = other
                break
        index.insert(row, sketch, check_duplication=False)
    return found


def judged(found: np.ndarray, texts: list[str], copies: list[int]) -> dict[str, float]:
    """Recall of the planted copies that are near twins, and precision of all that was named."""
    shingles = twins.shingle(texts)

    def near(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        return twins.jaccard(shingles, rows, shingles, others) >= twins.NEAR

    planted = np.flatnonzero(np.array(copies) >= 0)
    true = planted[near(planted, np.array(copies)[planted])]
    named = np.flatnonzero(found >= 0)
    return {
        "near_copies": len(true),
        "recall": round(float((found[true] >= 0).mean()), 4),
        "precision": round(float(near(named, found[named]).mean()), 4),
    }


def timed(way: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    found = way()
    return time.perf_counter() - started, found


def main(rows: int) -> None:
    """Take turns, print and write what was found."""
    told = {}
    for script in ALPHABETS:
        texts, copies = texts_of(script, rows)
        ways = {
            "luthier": lambda: ours(texts),  # noqa: B023
            "datasketch": lambda: theirs(texts, same_bands=True),  # noqa: B023
            "datasketch, its own bands": lambda: theirs(texts, same_bands=False),  # noqa: B023
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, way in ways.items():
                taken, found = timed(way)
                seconds[name].append(taken)
                told.setdefault(script, {})[name] = judged(found, texts, copies)
        for name in ways:
            told[script][name]["rows_per_second"] = round(rows / statistics.median(seconds[name]))
        rates = [told[script][name]["rows_per_second"] for name in ("luthier", "datasketch")]
        told[script]["times_as_fast"] = round(rates[0] / rates[1], 1)
        print(script, json.dumps(told[script], indent=1))
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "datasketch")}
    machine = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    RESULT.write_text(json.dumps({"rows": rows, "machine": machine, "scripts": told}, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
