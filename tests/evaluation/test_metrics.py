"""The table of metrics: values against scikit-learn, intervals, missing values, functions of one's own."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from luthier.errors import DataError, LuthierError, MissingExtra, SpecError
from luthier.evaluation import classes
from luthier.evaluation.metrics import (
    FAMILIES,
    METRICS,
    Prediction,
    by_class,
    by_name,
    clean,
    confusion,
    default_metrics,
    measure,
)
from luthier.evaluation.report import verdict

sklearn = pytest.importorskip("sklearn.metrics")


def prediction(reference: str | tuple[str, ...], answer: str, **more: object) -> Prediction:
    references = (reference,) if isinstance(reference, str) else reference
    return Prediction("id", "rows.jsonl:1", "prompt", references, answer, **more)  # type: ignore[arg-type]


def value(name: str, predictions: list[Prediction]) -> float:
    [metric] = by_name([name])
    measured = measure(metric, predictions)
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
    for kinds in (2, 5):
        names = [f"class {c}" for c in range(kinds)]
        gold = draw.integers(0, kinds, 150)
        shares = draw.dirichlet(np.ones(kinds), 150).round(2) + np.eye(kinds)[gold] * 0.3
        shares /= shares.sum(axis=1, keepdims=True)
        said = shares.argmax(axis=1)
        rows = [
            prediction(names[g], names[s], probabilities=dict(zip(names, p, strict=True)))
            for g, s, p in zip(gold, said, shares.tolist(), strict=True)
        ]
        assert value("accuracy", rows) == pytest.approx(sklearn.accuracy_score(gold, said))
        assert value("macro_f1", rows) == pytest.approx(sklearn.f1_score(gold, said, average="macro"))
        assert value("micro_f1", rows) == pytest.approx(sklearn.f1_score(gold, said, average="micro"))
        area = sklearn.roc_auc_score(gold, shares[:, 1] if kinds == 2 else shares, multi_class="ovr")
        assert value("auc", rows) == pytest.approx(area)
        assert value("mcc", rows) == pytest.approx(sklearn.matthews_corrcoef(gold, said))
        assert (confusion(rows)[1] == sklearn.confusion_matrix(gold, said)).all()
        told = sklearn.classification_report(gold, said, target_names=names, output_dict=True, zero_division=0)
        for line in by_class(rows):
            wanted = [told[line.name][key] for key in ("precision", "recall", "f1-score", "support")]
            assert [line.precision or 0, line.recall or 0, line.f1, line.n] == pytest.approx(wanted)
            assert line.low is not None and line.high is not None and line.low <= line.recall <= line.high


def test_macro_f1_counts_classes_that_are_only_answered() -> None:
    gold, said = ["a", "a", "b"], ["a", "c", "b"]
    rows = [prediction(g, s) for g, s in zip(gold, said, strict=True)]
    assert value("macro_f1", rows) == pytest.approx(sklearn.f1_score(gold, said, average="macro", zero_division=0))


@pytest.mark.parametrize("name", ["macro_f1", "micro_f1", "mcc", "ece", "auc", "ter", "chrf", "bleu"])
def test_a_whole_metric_of_weights_is_that_of_the_drawn_rows(name: str) -> None:
    shares = [0.9, 0.8, 0.7, 0.6, 0.2]
    rows = [
        prediction(g, s, probabilities={s: p, "z": 1 - p})
        for g, s, p in zip(["a b", "a b", "b c", "b c", "c"], ["a b", "b c", "b c", "b", "c d"], shares, strict=True)
    ]
    of = METRICS[name].whole(rows)  # type: ignore[misc]
    for drawn in ([0, 0, 1, 2, 4], [1, 2, 3, 3, 4], [0, 1, 2, 3, 4]):
        weights = np.bincount(drawn, minlength=5)[None].astype(float)
        again = METRICS[name].whole([rows[i] for i in drawn])  # type: ignore[misc]
        assert of(weights) == pytest.approx(again(np.ones((1, 5))))


@pytest.mark.filterwarnings("ignore:A single label")
def test_mcc_of_one_class_is_nothing() -> None:
    assert value("mcc", [prediction("a", "a"), prediction("a", "a")]) == 0 == sklearn.matthews_corrcoef([1, 1], [1, 1])
    assert value("mcc", [prediction("a", "a"), prediction("a", "b")]) == 0 == sklearn.matthews_corrcoef([1, 1], [1, 0])
    assert value("macro_f1", [prediction("a", "a")] * 3) == 1


def test_the_class_table_knows_what_cannot_be_said() -> None:
    a, b, c = by_class([prediction("a", "a"), prediction("a", "c"), prediction("b", "c")])
    assert (a.n, a.precision, a.recall) == (2, 1, 0.5)
    assert (b.n, b.precision, b.recall, b.f1) == (1, None, 0, 0)  # never answered
    assert (c.n, c.answered, c.precision, c.recall, c.low, c.high) == (0, 2, 0, None, None, None)  # nobody's reference


def test_calibration_is_the_gap_between_how_sure_and_how_right() -> None:
    def row(sure: float, right: bool) -> Prediction:
        said = "a" if right else "b"
        return prediction("a", said, probabilities={said: sure, "z": 1 - sure})

    honest = [row(0.75, i % 4 != 0) for i in range(40)]
    assert value("ece", honest) == pytest.approx(0)
    assert value("ece", [row(1.0, i % 4 != 0) for i in range(40)]) == pytest.approx(0.25)
    # two bins: 0.9 sure and 0.5 right, 0.6 sure and all right
    mixed = [*(row(0.9, i % 2 == 0) for i in range(10)), *(row(0.6, True) for _ in range(30))]
    assert value("ece", mixed) == pytest.approx(0.25 * 0.4 + 0.75 * 0.4)
    assert METRICS["ece"].row(row(0.9, False)) == pytest.approx(0.9)
    found = verdict(METRICS["ece"], honest, [row(1.0, i % 4 != 0) for i in range(40)])
    assert found.outcome == "better" and found.difference < 0  # less is better


def test_calibration_equals_a_count_bin_by_bin() -> None:
    draw = np.random.default_rng(1)
    sure, right = draw.random(500), draw.random(500) < 0.5
    sure[:3] = [0.0, 1.0, 1 / classes.BINS]  # the edges
    expected = 0.0
    for k in range(classes.BINS):
        inside = (sure > k / classes.BINS) & (sure <= (k + 1) / classes.BINS) | ((sure == 0) & (k == 0))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert classes.ece(right, sure)(np.ones((1, 500))) == pytest.approx([expected])


def test_rows_without_probabilities_are_left_out() -> None:
    rows = [prediction("a", "a", probabilities={"a": 0.8, "b": 0.2}), prediction("b", "a"), prediction("b", "b")]
    measured = measure(METRICS["ece"], rows)
    assert measured is not None and measured.score.n == 1 and measured.rows[1:] == (None, None)
    assert measure(METRICS["ece"], rows[1:]) is None


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


@pytest.mark.parametrize(("gives", "said"), [("many", "ValueError"), (float("nan"), "gave nan"), (2.5, "gave 2.5")])
def test_a_function_that_gives_no_value_is_named(gives: object, said: str) -> None:
    def half(answer: str, reference: str, columns: dict[str, object]) -> bool:
        return gives  # type: ignore[return-value]

    with pytest.raises(DataError, match=f"metric `half`.*{said}"):
        measure(by_name([half])[0], [prediction("a", "a")])


def test_a_function_needs_a_name() -> None:
    with pytest.raises(SpecError, match="needs a name"):
        by_name([functools.partial(max, key=len)])


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("exact_mach", "there is no metric `exact_mach`", "did you mean `exact_match`?"),
        ("rouge-l", "there is no metric `rouge-l`", "did you mean `rougeL`?"),
        ("exact_match:sqll", "exact match knows no `sqll`", "did you mean `sql`?"),
        ("exact_match:", "needs to be told what", "write `exact_match:NORMALISER`"),
        ("exact_mach:sql", "there is no metric `exact_mach`", "did you mean `exact_match`?"),
        ("accuracy:macro", "takes nothing after a colon", "write `accuracy`"),
        ("regex", "needs to be told what", "write `regex:PATTERN`"),
        ("regx", "there is no metric `regx`", "did you mean `regex`?"),
        ("regex:(", "no regular expression", None),
        ("json_schema", "needs to be told what", "write `json_schema:FILE`"),
        ("os:getcwd", "not allowed here", "use an installed plugin"),
    ],
)
def test_unknown_metrics_are_refused_with_the_nearest_name(name: str, message: str, hint: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        by_name([name])
    assert message in caught.value.message and caught.value.hint == hint


def test_a_metric_named_twice_is_one() -> None:
    assert [metric.name for metric in by_name(["accuracy", "exact_match:strip", "exact_match", "accuracy"])] == [
        "accuracy",
        "exact_match",
    ]


def test_every_name_with_an_argument_finds_its_metric_again() -> None:
    names = ["exact_match:sql", "regex:^a:b$"]
    assert [metric.name for metric in by_name(names)] == names  # a report is read by these names
    assert {"exact_match", "regex", "json_schema"} == set(FAMILIES)


@pytest.mark.parametrize(
    ("normaliser", "same", "different"),
    [
        ("strip", ("a", " a\n"), ("a", "A")),
        ("case", ("Straße", "STRASSE "), ("a", "a.")),
        ("whitespace", ("a  b\tc", " a b c"), ("a b", "ab")),
        ("squad", ("The Cat.", "cat"), ("cat", "cats")),
        ("sql", ("SELECT A FROM t;", "select a  from T"), ("SELECT 'A'", "SELECT 'a'")),
        ("number", ("1,000.0", "1000"), ("1000", "1001")),
        ("json", ('{"a":1,"b":[2.0]}', '{"b": [2], "a": 1}'), ('{"a": 1}', '{"a": true}')),
    ],
)
def test_exact_match_overlooks_what_it_is_told(
    normaliser: str, same: tuple[str, str], different: tuple[str, str]
) -> None:
    [metric] = by_name([f"exact_match:{normaliser}"])
    assert (metric.row(prediction(*same)), metric.row(prediction(*different))) == (1, 0)
    assert metric.row(prediction((different[0], same[0]), same[1])) == 1  # any reference will do


def test_numbers_are_equal_by_value() -> None:
    row = METRICS["number"].row
    assert row(prediction("... so she earns 9 * 2 = $18\n#### 18", "The answer is 18.00 dollars.")) == 1
    assert row(prediction("#### 1,234", "It is 1234")) == 1
    assert row(prediction("-5", "minus 5")) == 0
    assert row(prediction(("7", "8"), "8")) == 1
    assert row(prediction("5", "no idea")) == 0
    assert row(prediction("no idea", "5")) is None  # nothing to compare with


def test_a_pattern_is_searched_in_the_answer() -> None:
    [metric] = by_name([r"regex:^\d+$"])
    assert [metric.row(prediction("x", answer)) for answer in ("42\n", "x42", "", "٤٢")] == [1, 0, 0, 1]


def test_a_pattern_that_never_ends_is_not_found() -> None:
    [metric] = by_name(["regex:^(a|aa|a?)+$"])
    assert metric.row(prediction("x", "a" * 40 + "b")) == 0


def test_ter_counts_edits_over_all_rows() -> None:
    rows = [prediction("a b c d", "a b c"), prediction("e", "x")]
    assert value("ter", rows) == pytest.approx(100 * 2 / 5)
    assert not METRICS["ter"].higher_is_better and METRICS["ter"].row(rows[1]) == 100


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("", ""),
        ("", "a"),
        ("a", ""),
        ("?!", "..."),
        ("👩‍👩‍👧 🙂", "🙂"),
        ("안녕하세요", "안녕"),
        ("東京へ行く", "東京に行く"),
        ("مرحبا بالعالم", "مرحبا"),
        ("שלום עולם", "עולם"),
        ("\u202eabc", "abc"),
        ("\ud800", "a"),
        ("\x00", "a"),
        (" \n", "a"),
    ],
)
def test_every_metric_survives_every_text(answer: str, reference: str) -> None:
    row = prediction(reference, answer, probabilities={answer: 0.6, "z": 0.4}, nll=1.0, tokens=2)
    for metric in [*METRICS.values(), *by_name([f"exact_match:{name}" for name in ("case", "squad", "sql", "json")])]:
        measured = measure(metric, [row, prediction("a", "b", probabilities={"b": 1.0}, nll=1.0, tokens=2)])
        if measured is not None:
            assert np.isfinite(measured.score.value) and measured.score.low <= measured.score.high
            assert metric.top is None or all(v is None or 0 <= v <= metric.top + 1e-9 for v in measured.rows)


def test_texts_of_every_script_are_compared() -> None:
    for answer, reference in [
        ("안녕하세요 여러분", "안녕하세요"),
        ("東京へ行く", "東京に行く"),
        ("مرحبا بالعالم", "مرحبا"),
        ("🙂🙃", "🙂"),
    ]:
        row = prediction(reference, answer)
        spoken = not reference.startswith("🙂")
        for name in ("token_f1", "rouge1", "rougeL", "rougeLsum", "edit_similarity", "chrf"):
            if spoken or name in ("edit_similarity", "chrf"):
                assert 0 < METRICS[name].row(row) < METRICS[name].top, (name, answer)  # type: ignore[operator]
    assert METRICS["ter"].row(prediction("東京に行く", "東京へ行く")) == pytest.approx(20)  # one of five letters


# ---------------------------------------------------------------------------------------------------------- JSON schema

ORDER = {
    "type": "object",
    "required": ["id", "lines"],
    "properties": {"id": {"type": "integer"}, "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}}},
    "$defs": {"line": {"type": "object", "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}$"}}}},
}


def schema(folder: Path, content: object) -> str:
    pytest.importorskip("jsonschema")
    file = folder / "order.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"json_schema:{file}"


def test_an_answer_fits_a_schema(tmp_path: Path) -> None:
    [metric] = by_name([schema(tmp_path, ORDER)])
    answers = [
        '{"id": 1, "lines": []}',
        '{"id": 1, "lines": [{"code": "ab"}]}',
        '{"id": "1", "lines": []}',
        "{}",
        "",
        "x",
    ]
    assert [metric.row(prediction("{}", answer)) for answer in answers] == [1, 0, 0, 0, 0, 0]
    assert metric.title == "JSON schema order.json"
    assert by_name([metric.name])[0].rule == metric.rule


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type": "objct"}, "'objct' is not valid"),
        ("{", "not JSON"),
        ("[1]", "not a JSON Schema"),
        ({"$ref": "#/$defs/nowhere"}, "`#/$defs/nowhere` is not in it"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1:9/stolen"}}}, "`http://127.0.0.1:9/stolen` is not in it"),
        ({"pattern": "("}, "is not a 'regex'"),
    ],
)
def test_a_bad_schema_is_refused_before_any_row(tmp_path: Path, content: object, said: str) -> None:
    name = schema(tmp_path, content)
    with pytest.raises(SpecError) as caught:
        by_name([name])
    assert said in caught.value.message and caught.value.where == name.partition(":")[2]


def test_a_missing_schema_names_its_neighbour(tmp_path: Path) -> None:
    name = schema(tmp_path, ORDER)
    with pytest.raises(LuthierError) as caught:
        by_name([name.replace("order", "ordr")])
    assert caught.value.hint is not None and "order.json" in caught.value.hint


def test_without_the_library_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = schema(tmp_path, ORDER)
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtra) as caught:
        by_name([name])
    assert caught.value.hint == 'pip install "luthier[schema]"'


def test_a_schema_s_pattern_may_not_hold_the_evaluation_up(tmp_path: Path) -> None:
    [metric] = by_name([schema(tmp_path, {"pattern": "^(a|aa|a?)+$"})])
    assert metric.row(prediction("{}", json.dumps("a" * 40 + "b"))) == 0


def test_every_default_is_in_the_table() -> None:
    for task in ("classification", "generation", "summarization", "translation", "chat"):
        for labels in ((), ("no", "yes")):
            assert set(default_metrics(task, labels=labels)) <= set(METRICS)


def test_the_defaults_of_classes_look_at_the_classes() -> None:
    assert default_metrics("classification") == ("accuracy", "macro_f1", "mcc")
    assert default_metrics("classification", labels="abc") == ("accuracy", "macro_f1", "mcc", "ece")
    assert "auc" in default_metrics("classification", labels="ab")
