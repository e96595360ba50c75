"""The guide of search says what the code does: its files can be read, its numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from luthier import spec
from luthier.trials import pruning, space, study

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "search.md").read_text(encoding="utf-8")


def test_every_file_in_the_guide_is_an_experiment_whose_values_go_together(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)
    assert len(blocks) >= 2
    for block in blocks:
        head = "" if block.startswith("model:") else "model: org/base\ndata: tickets.jsonl\n"
        (tmp_path / "x.yaml").write_text(head + block, encoding="utf-8")
        one = spec.load(tmp_path / "x.yaml")
        found = space.parse(one.search.space)
        space.refuse_combinations(found, one)
        assert study.ask(found, one.search, 0, []) is not None and not spec.advice(one)


def test_the_numbers_of_the_guide_are_those_of_the_code():
    assert f"More than {space.GRID_LIMIT:,} combinations" in GUIDE and space.GRID_POINTS == 5
    assert f"{space.TRIALS} trials are made where `trials` is not given, {space.FULL_TRIALS} of full" in GUIDE
    assert (space.LOOKS, space.LOOKS_SHARE, space.BACKWARD) == (9, 1 / 3, 3)
    assert (study.STARTUP, study.MOST_STARTUP, study.DIGITS, study.FEWEST, study.TOP) == (5, 10, 4, 8, 5)
    assert pruning.RUNGS == (1 / 9, 1 / 3) and (pruning.ETA, pruning.JUDGED_AMONG, pruning.MEDIAN_OF) == (3, 3, 4)
    assert (pruning.RISES, pruning.TOLERANCE, pruning.DIVERGED, pruning.FAR_ABOVE) == (3, 0.01, 2.0, 3.0)
    assert (space.RANK_LIMIT, space.RATE_LIMIT) == (64, 0.5)
    for sampler in ("tpe", "random", "grid", "cmaes"):
        assert f"| `{sampler}`" in GUIDE
    for pruner in ("asha", "hyperband", "median", "none"):
        assert f"| `{pruner}`" in GUIDE
