"""What tuning cost elsewhere: the built-in texts, and figures and words from likelihoods that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from luthier.data.encode import Rules
from luthier.evaluation import forgetting
from luthier.evaluation.forgetting import Forgotten
from luthier.evaluation.metrics import METRICS, Prediction
from luthier.evaluation.predictions import Row
from luthier.models import base
from luthier.spec import Model

PERPLEXITY, MATCH = METRICS["perplexity"], METRICS["exact_match"]


def rows(kind: str | None, before: Sequence[float], after: Sequence[float], right: Sequence[str] = ()) -> list[Row]:
    """Texts of ten tokens with these nats a token; `right`: base and tuned answer, "10" for a row that was lost."""
    found = []
    for i, nats in enumerate(zip(before, after, strict=True)):
        sides = {}
        for k, name in enumerate(("base", "tuned")):
            said = "yes" if right and right[i][k] == "1" else "no"
            columns = {"kind": kind} if kind else {}
            sides[name] = Prediction(str(i), "f:1", "", ("yes",), said, nll=10 * nats[k], tokens=10, columns=columns)
        metrics = (PERPLEXITY, MATCH) if right else (PERPLEXITY,)
        found.append(Row(sides, {name: {m.name: m.row(p) for m in metrics} for name, p in sides.items()}))
    return found


def spread(middle: float, n: int = 60) -> list[float]:
    return [middle + 0.3 * math.sin(i) for i in range(n)]


def test_the_built_in_texts_are_short_and_of_three_kinds() -> None:
    found = forgetting.texts()
    assert {kind: len(some) for kind, some in found.items()} == {
        "general English": 45,
        "other languages": 22,
        "code": 19,
    }
    every = [text for some in found.values() for text in some]
    assert len(set(every)) == len(every) and max(map(len, every)) < 120
    assert sum(len(text.encode()) for text in every) < 6_000
    assert any("\n" in text for text in found["code"]) and not any(text.startswith("# ") for text in every)


@pytest.mark.parametrize(
    ("change", "ends"),
    [
        (0.3, "1.35 times (1.35–1.35): the model has forgotten"),
        (0.05, "1.05 times (1.05–1.05): the model is a little less sure"),
        (-0.2, "0.82 times (0.82–0.82): the model is surer than before"),
        (0.0, "1.00 times (1.00–1.00): nothing is forgotten"),
    ],
)
def test_the_ratio_is_that_of_perplexities_and_is_said_in_words(change: float, ends: str) -> None:
    before = spread(3.7)
    (told,) = forgetting.compare(rows("general English", before, [b + change for b in before]), 32_000)
    mean = sum(before) / len(before)
    assert (told.name, told.n, told.metric, told.strange) == ("general English", 60, "perplexity", False)
    assert told.before == pytest.approx(math.exp(mean)) and told.after == pytest.approx(math.exp(mean + change))
    assert told.ratio == pytest.approx(math.exp(change))
    assert told.sentence.startswith("general English: perplexity 40.") and told.sentence.endswith(ends)


def test_its_interval_is_that_of_the_rows_in_pairs() -> None:
    draw = np.random.default_rng(1)
    before, change = draw.normal(3, 1, 80), draw.normal(0.1, 0.4, 80)
    (told,) = forgetting.compare(rows("code", before.tolist(), (before + change).tolist()), 32_000)
    error = change.std(ddof=1) / math.sqrt(80)
    assert math.log(told.low) == pytest.approx(change.mean() - 1.96 * error, abs=0.02)
    assert math.log(told.high) == pytest.approx(change.mean() + 1.96 * error, abs=0.02)
    noisy = forgetting.compare(rows("code", [3.0] * 6, [2.0, 4.2, 2.5, 3.9, 2.6, 3.8]), 32_000)[0]
    assert noisy.sentence.endswith("cannot tell on these rows")


def test_text_that_was_strange_before_is_not_called_forgotten() -> None:
    (told,) = forgetting.compare(rows("code", spread(9.0), spread(9.8)), 4_096)
    assert told.strange and told.sentence.endswith("strange to the base all along, so nothing is forgotten")


def test_own_rows_have_their_answers_compared_too() -> None:
    right = ["10"] * 14 + ["11"] * 20 + ["00"] * 4 + ["01"] * 2
    perplexity, match = forgetting.compare(rows(None, spread(9.0, 40), spread(9.4, 40), right), 4_096)
    assert perplexity.name == "your rows" and not perplexity.strange
    assert (match.metric, match.before, match.after, match.ratio) == ("exact_match", 34 / 40, 22 / 40, None)
    assert match.low < match.after - match.before < match.high < 0
    assert match.sentence == "your rows: right 0.85 → 0.55 of 40 (14 lost, 2 gained): fewer are right"
    gained = forgetting.compare(rows(None, [1.0] * 20, [1.0] * 20, ["01"] * 20), 4_096)[1]
    assert gained.sentence.endswith("more are right")
    same = forgetting.compare(rows(None, [1.0] * 20, [1.0] * 20, ["11"] * 20), 4_096)[1]
    assert same.sentence.endswith("cannot tell a change")


def test_every_text_becomes_tokens_of_a_decoder_without_its_end(tiny: Callable[..., Path]) -> None:
    loaded = base.load(Model(name=str(tiny("tiny_llama"))), None)
    rules = Rules("causal", "classification", end_token_ids=loaded.end_token_ids, labels=("a", "b"), positions=40)
    found = forgetting.questions(loaded.tokenizer, rules)
    assert len(found) == sum(len(some) for some in forgetting.texts().values())
    for question in found:
        row = question.encoded
        assert 2 <= len(row.ids_L) <= 40 and row.train_L[1:].all()
        assert not set(row.ids_L.tolist()) & set(loaded.end_token_ids)
        said = loaded.tokenizer.decode(row.ids_L, skip_special_tokens=True)
        assert said.rstrip("\ufffd") in question.references[0]
    assert any(question.encoded.cut for question in found)


def test_where_it_does_not_apply_that_is_said() -> None:
    assert forgetting.not_applicable(Rules("causal", positions=256, virtual_tokens=16)) is None
    assert forgetting.not_applicable(Rules("causal")) is None
    assert forgetting.not_applicable(Rules("causal", positions=40, virtual_tokens=16)) == (
        "forgetting was not measured: 24 positions are too few for a sentence"
    )
    assert "encoder" in str(forgetting.not_applicable(Rules("encoder", positions=512)))
    assert "no task of this base" in str(forgetting.not_applicable(Rules("seq2seq")))


def test_a_perplexity_beyond_all_numbers_stays_one() -> None:
    (told,) = forgetting.compare(rows("code", [705.0] * 8, [708.0] * 8), 300)
    assert isinstance(told, Forgotten) and math.isfinite(told.after) and math.isfinite(told.ratio or math.inf)
