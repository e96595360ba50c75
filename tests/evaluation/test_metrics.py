"""The table of metrics: values against scikit-learn, intervals, missing values, functions of one's own."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.errors import DataError, SpecError
from luthier.evaluation.metrics import METRICS, Prediction, by_name, clean, confusion, default_metrics, measure

sklearn = pytest.importorskip("sklearn.metrics")


def prediction(reference: str | tuple[str, ...], answer: str, **more: object) -> Prediction:
    references = (reference,) if isinstance(reference, str) else reference
    return Prediction("id", "rows.jsonl:1", "prompt", references, answer, **more)  # type: ignore[arg-type]


def value(name: str, predictions: list[Prediction]) -> float:
    measured = measure(METRICS[name], predictions)
    assert measured is not None
    assert measured.score.low <= measured.score.value <= measured.score.high
    return measured.score.value


def test_exact_match_strips_end_tokens_and_spaces_and_nothing_else() -> None:
    answers = [" SELECT 1\n", "SELECT 1 ", "select 1", "SELECT  1"]
    assert [METRICS["exact_match"].row(prediction("SELECT 1", a)) for a in answers] == [1, 1, 0, 0]
    assert METRICS["exact_match"].row(prediction(("one", "1"), "1")) == 1
    assert clean("답은 3입니다 <|im_end|> </s>\n", ["<|im_end|>", "</s>", ""]) == "답은 3입니다"


def test_classes_are_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    for classes in (2, 5):
        names = [f"class {c}" for c in range(classes)]
        gold = draw.integers(0, classes, 150)
        shares = draw.dirichlet(np.ones(classes), 150).round(2) + np.eye(classes)[gold] * 0.3
        shares /= shares.sum(axis=1, keepdims=True)
        said = shares.argmax(axis=1)
        rows = [
            prediction(names[g], names[s], probabilities=dict(zip(names, p, strict=True)))
            for g, s, p in zip(gold, said, shares.tolist(), strict=True)
        ]
        assert value("accuracy", rows) == pytest.approx(sklearn.accuracy_score(gold, said))
        assert value("macro_f1", rows) == pytest.approx(sklearn.f1_score(gold, said, average="macro"))
        assert value("micro_f1", rows) == pytest.approx(sklearn.f1_score(gold, said, average="micro"))
        area = sklearn.roc_auc_score(gold, shares[:, 1] if classes == 2 else shares, multi_class="ovr")
        assert value("auc", rows) == pytest.approx(area)
        assert (confusion(rows)[1] == sklearn.confusion_matrix(gold, said)).all()


def test_macro_f1_counts_classes_that_are_only_answered() -> None:
    gold, said = ["a", "a", "b"], ["a", "c", "b"]
    rows = [prediction(g, s) for g, s in zip(gold, said, strict=True)]
    assert value("macro_f1", rows) == pytest.approx(sklearn.f1_score(gold, said, average="macro", zero_division=0))


def test_bootstrap_of_macro_f1_is_macro_f1_of_the_drawn_rows() -> None:
    rows = [prediction(g, s) for g, s in zip("aabbc", "abbbc", strict=True)]
    of = METRICS["macro_f1"].whole(rows)  # type: ignore[misc]
    drawn = [0, 0, 1, 4, 4]
    gold, said = [rows[i].references[0] for i in drawn], [rows[i].answer for i in drawn]
    expected = sklearn.f1_score(gold, said, average="macro", zero_division=0)
    assert of(np.bincount(drawn, minlength=5)[None]) == pytest.approx([expected])


def test_perplexity_is_over_tokens_not_rows() -> None:
    rows = [prediction("x", "", nll=2.0, tokens=1), prediction("x", "", nll=4.0, tokens=5), prediction("x", "")]
    measured = measure(METRICS["perplexity"], rows)
    assert measured is not None
    assert measured.score.value == pytest.approx(np.e)
    assert (measured.score.n, measured.rows[2]) == (2, None)


def test_a_metric_without_what_it_needs_says_so() -> None:
    assert measure(METRICS["auc"], [prediction("a", "a")]) is None
    assert measure(METRICS["auc"], [prediction("a", "a", probabilities={"a": 0.7, "b": 0.3})]) is None  # one class only
    assert measure(METRICS["sql_execution"], [prediction("SELECT 1", "SELECT 1")]) is None


def test_sql_runs_on_the_rows_own_tables() -> None:
    columns = {"setup": "CREATE TABLE t (a INT); INSERT INTO t VALUES (7);"}
    rows = [prediction("SELECT a FROM t", a, columns=columns) for a in ("SELECT max(a) FROM t", "SELECT b FROM t")]
    assert value("sql_execution", rows) == 0.5


@pytest.mark.parametrize(
    ("answer", "valid"),
    [('{"a": [1, null]}', 1), ("3", 1), ("{'a': 1}", 0), ("NaN", 0), ("```json\n{}\n```", 0), ("", 0)],
)
def test_json_is_json(answer: str, valid: float) -> None:
    assert METRICS["json_valid"].row(prediction("{}", answer)) == valid


def test_several_references_take_the_best() -> None:
    row = prediction(("a white dog", "the black cat"), "the black cat")
    for name in ("rouge1", "rougeL"):
        assert METRICS[name].row(row) == 1
    assert METRICS["chrf"].row(row) == pytest.approx(100)
    assert METRICS["bleu"].row(row) == pytest.approx(100)


def test_a_function_is_a_metric() -> None:
    def same_length(answer: str, reference: str, columns: dict[str, object]) -> bool:
        return len(answer) == len(reference)

    def length(answer: str, reference: str, columns: dict[str, object]) -> int | None:
        return len(answer) or None

    def broken(answer: str, reference: str, columns: dict[str, object]) -> float:
        raise KeyError("price")

    rows = [prediction("abc", "xyz"), prediction("abc", "")]
    share, mean, fails = by_name([same_length, length, broken])
    assert (share.kind, mean.kind) == ("share", "mean")
    assert [share.row(p) for p in rows] == [1, 0]
    assert [mean.row(p) for p in rows] == [3, None]
    with pytest.raises(DataError, match=r"broken.*KeyError") as caught:
        measure(fails, rows)
    assert caught.value.where == "rows.jsonl:1"


def test_unknown_metrics_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError) as caught:
        by_name(["exact_mach"])
    assert caught.value.hint == "did you mean `exact_match`?"


def test_every_default_is_in_the_table() -> None:
    for task in ("classification", "generation", "summarization", "translation", "chat"):
        for labels in ((), ("no", "yes")):
            assert set(default_metrics(task, labels=labels)) <= set(METRICS)
