"""The command line: data on stdout, words on stderr, exit codes, one wording for errors, no traceback."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pytest
import typer.main

from luthier import runs, spec
from luthier.cli import app
from luthier.cli.commands import after, before, begin, searching, tuning
from luthier.errors import DataError, NotFound, SpecError
from luthier.studio import Studio, plan, prepare
from tests import rows
from tests.cli.conftest import Luthier

OWN_FLAGS = {
    "demo": {"--json"},
    "init": {"--out", "--set"},
    "convert": {"--out", "--json"},
    "doctor": {"--json"},
    "schema": set(),
    "prepare": {"--json", "--remove-leaks", "--set"},
    "look": {"--row", "--worst", "--html", "--set", "--json"},
    "plan": {"--set", "--measure", "--json"},
    "tune": {"--set", "--accept", "--new", "--seeds", "--from", "--json"},
    "search": {"--set", "--new", "--engine", "--seeds", "--json"},
    "search add": {"--set"},
    "search clone": {"--set"},
    "search stop": set(),
    "ladder": {"--set", "--shots", "--json"},
    "stop": set(),
    "resume": {"--json"},
    "watch": {"--json"},
    "runs": {"--json"},
    "show": {"--json"},
    "evaluate": {"--data", "--base-url", "--set", "--json"},
    "compare": {"--html", "--json"},
    "generate": {"--file", "--base", "--json"},
    "publish": {"--merge", "--json"},
}
"""Every verb and every flag it has. A parameter is changed with --set: add no flag for one."""
EVERYBODYS = {"--set", "--json"}


def test_the_flags_are_these_and_no_verb_has_more_than_five() -> None:
    found = {}
    commands = typer.main.get_group(app.app).commands
    for name, command in (
        commands | {f"search {name}": each for name, each in commands["search"].commands.items()}
    ).items():  # type: ignore[attr-defined]
        found[name] = {flag for option in command.params for flag in option.opts if flag.startswith("--")} - {"--help"}
    assert found == OWN_FLAGS
    assert max(len(flags - EVERYBODYS) for flags in found.values()) <= 5


def test_every_verb_says_in_a_line_what_it_does() -> None:
    for functions in (*app.COMMANDS.values(), searching.VERBS):
        for function in functions:
            assert function.__doc__ and len(function.__doc__.splitlines()[0]) < 130


def test_init_writes_only_what_was_chosen_and_never_over_a_file(
    luthier: Luthier, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    rows.pairs(tmp_path)
    said = luthier("init", tiny("tiny_llama"), "pairs.jsonl", "--set", "method=prompt_tuning")
    assert said.code == 0 and said.out == "experiment.yaml\n" and "input_output rows for classification" in said.err
    written = spec.load(tmp_path / "experiment.yaml")
    assert spec.chosen(written) == {"model.name", "data.train", "task", "method.type"}
    assert luthier("plan").code == 0
    again = luthier("init", tiny("tiny_llama"), "pairs.jsonl")
    assert again.code == 2 and "exists" in again.err
    broken = luthier("init", tmp_path / "nowhere", "pairs.jsonl", "--out", "other.yaml")
    assert broken.code == 2 and not (tmp_path / "other.yaml").exists()


def test_what_the_rows_need_to_be_read_can_be_said_with_set(
    luthier: Luthier, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    told = [{"text": f"{i} 계좌가 잠겼어요", "label": "계좌" if i % 2 else "카드"} for i in range(60)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told)
    (tmp_path / "korean.jsonl").write_bytes(lines.encode("cp949"))
    unread = luthier("prepare", "korean.jsonl")
    assert unread.code == 2 and "data.encoding: cp949" in unread.err
    told = json.loads(luthier("prepare", "korean.jsonl", "--set", "data.encoding=cp949", "--json").out)
    assert sum(told["counts"].values()) == 60 and told["labels"] == ["계좌", "카드"]
    limited = json.loads(
        luthier(
            "prepare", "korean.jsonl", "--set", "data={train: korean.jsonl, encoding: cp949, limit: 9}", "--json"
        ).out
    )
    assert limited["counts"]["train"] == 9
    wrong = luthier("prepare", "korean.jsonl", "--set", "data.encodin=cp949")
    assert wrong.code == 2 and "did you mean `encoding`" in wrong.err and "--set data.encodin" in wrong.err
    made = luthier("init", tiny("tiny_llama"), "korean.jsonl", "--set", "data.encoding=cp949")
    assert made.code == 0 and spec.load(tmp_path / "experiment.yaml").data.encoding == "cp949"
    failed = luthier("init", tiny("tiny_llama"), "korean.jsonl", "--out", "other.yaml")
    assert failed.code == 2 and not (tmp_path / "other.yaml").exists()
    assert luthier("init", "korean.jsonl", "--set", "data.encoding=cp949").code == 0


def test_init_with_data_alone_names_bases_that_fit(luthier: Luthier, tmp_path: Path) -> None:
    rows.labels(tmp_path)
    said = luthier("init", "labels.jsonl")
    assert said.code == 0 and not (tmp_path / "experiment.yaml").exists()
    assert {"encoder", "causal"} <= set(said.out.split()) and "luthier init MODEL labels.jsonl" in said.err


def test_tune_prints_the_verdict_and_nothing_else_on_stdout(luthier: Luthier, experiment: Path, tmp_path: Path) -> None:
    first = luthier("tune")
    assert first.code == 0 and re.fullmatch(r"accuracy: tuned \d\.\d\d \(.*\n", first.out)
    for words in ("training: ", "step ", "validation ", "report: "):
        assert words in first.err
    again = luthier("tune")
    assert again.code == 0 and again.out == first.out and "is done already" in again.err
    [run] = runs.all_runs(tmp_path / "home")
    assert run.name == "experiment"


def test_json_is_events_and_then_the_report(luthier: Luthier, experiment: Path) -> None:
    told = [json.loads(line) for line in luthier("tune", "--json").out.splitlines()]
    kinds = [line["event"] for line in told[:-1]]
    assert {"Started", "Stepped", "Evaluated", "Saved", "Finished"} <= set(kinds) and kinds[-1] == "Finished"
    assert told[-1]["verdict"] == told[-1]["report"]["verdict"]


def test_set_changes_a_parameter_and_only_so(luthier: Luthier, experiment: Path) -> None:
    told = json.loads(luthier("plan", "--set", "training.learning_rate=0.5", "--set", "method.rank=2", "--json").out)
    assert told["values"]["training.learning_rate"] == {"value": 0.5, "origin": "you"}
    assert told["values"]["method.rank"]["value"] == 2 and told["values"]["method.dropout"]["origin"] != "you"
    assert told["plan"]["steps"] == 3


@pytest.mark.parametrize(
    ("text", "where", "what", "hint"),
    [
        (
            "training: {learning_rte: 1}",
            "experiment.yaml:5",
            "`training.learning_rte` is not a parameter",
            "learning_rate",
        ),
        ("training: {batch_size: 0}", "experiment.yaml:5", "`training.batch_size`", ""),
        ("seed: 1\nseed: 2", "experiment.yaml:6", "seed", ""),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(
    luthier: Luthier, experiment: Path, text: str, where: str, what: str, hint: str
) -> None:
    kept = [line for line in experiment.read_text().splitlines() if not line.startswith("training")]
    experiment.write_text("\n".join([*kept, "task: generation", text]) + "\n")
    for verb in ("plan", "tune"):
        said = luthier(verb)
        assert said.code == 2 and said.out == "" and "Traceback" not in said.err
        assert said.err.startswith("error: ") and what in said.err and where in said.err and hint in said.err


def test_a_metric_nobody_knows_is_refused_before_anything_is_trained(
    luthier: Luthier, experiment: Path, tmp_path: Path
) -> None:
    for verb in ("plan", "tune"):
        said = luthier(verb, "--set", "evaluation.metrics=[exact_mach]")
        assert said.code == 2 and "there is no metric `exact_mach`" in said.err and "`exact_match`" in said.err
    assert runs.all_runs(tmp_path / "home") == []


@pytest.mark.parametrize("item", [0, 3, 5])
def test_of_one_row_command_line_and_python_say_the_same(luthier: Luthier, tmp_path: Path, item: int) -> None:
    row = {"input": f"a{item}?", "output": "red"}
    path = rows.write(tmp_path / "one.jsonl", [row])
    (tmp_path / "one.yaml").write_text("model: m\ndata: one.jsonl\n")
    said = [luthier("prepare", path, "--json"), luthier("prepare", "one.yaml", "--json")]
    for source in (path, str(path), [row], tmp_path / "one.yaml"):
        try:
            found = {"code": 0, "counts": prepare(source).counts}
        except DataError as refusal:
            found = {"code": 2, "message": refusal.message}
        for each in said:
            assert each.code == found["code"]
            assert json.loads(each.out)["counts"] == found["counts"] if each.out else found["message"] in each.err


def test_prepare_takes_leaks_out_on_request(luthier: Luthier, tmp_path: Path) -> None:
    rows.pairs(tmp_path, 30)
    (tmp_path / "leaky.yaml").write_text("model: m\ndata: {train: pairs.jsonl, validation: 0, test: test.jsonl}\n")
    rows.write(tmp_path / "test.jsonl", [{"input": "item 3?", "output": "red"}])
    refused = luthier("prepare", "leaky.yaml")
    assert refused.code == 2 and "1 row of train also stands in test" in refused.err
    assert json.loads(luthier("prepare", "leaky.yaml", "--remove-leaks", "--json").out)["counts"]["train"] == 29
    assert json.loads(luthier("prepare", "pairs.jsonl", "--remove-leaks", "--json").out)["task"] == "classification"


def test_python_takes_the_path_of_an_experiment_where_it_takes_an_experiment(
    luthier: Luthier, experiment: Path, tmp_path: Path
) -> None:
    told = json.loads(luthier("plan", "--json").out)["plan"]
    for given in (experiment, str(experiment), spec.load(experiment)):
        assert plan(given).steps == told["steps"] == 3
        assert Studio().look(given, ["1"])
    for wrong in ({"model": "m"}, 3):
        with pytest.raises(SpecError, match="an Experiment or the path of its file is needed"):
            plan(wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="does not exist"):
        plan("absent.yaml")


def test_luthier_alone_is_its_help(luthier: Luthier) -> None:
    alone, asked = luthier(), luthier("--help")
    assert (alone.code, alone.err) == (0, "") and alone.out == asked.out and "tune" in alone.out


def test_a_secret_is_refused_and_not_repeated(luthier: Luthier, experiment: Path, tmp_path: Path) -> None:
    secret = "hf_" + "a" * 34
    said = luthier("tune", "--set", f"model.name={secret}")
    assert said.code == 2 and "looks like a secret" in said.err and secret not in said.err + said.out
    assert runs.all_runs(tmp_path / "home") == []


def test_a_failed_run_says_why_and_shows_it_again(luthier: Luthier, experiment: Path) -> None:
    said = luthier("tune", "--set", "training.learning_rate=1e30", "--set", "training.num_epochs=9")
    assert said.code == 1 and "not finite" in said.err
    shown = luthier("show")
    assert shown.code == 0 and "failed" in shown.out and "not finite" in shown.err
    assert luthier("tune").code == 0 and len(luthier("runs").out.splitlines()) == 3  # corrected: it may begin at once


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tune", "absent.yaml"), "does not exist"),
        (("show", "nobody"), "there is no run `nobody`"),
        (("watch",), "there are no runs yet"),
        (("evaluate", "nobody"), "`nobody` is neither a run nor a model folder"),
        (("evaluate", "./nobody"), "`./nobody` is neither a run nor a model folder"),
        (("evaluate", "/nowhere/base", "--data", "x.jsonl"), "`/nowhere/base` is neither a run nor a model folder"),
        (("compare", "one"), "cannot be compared"),
        (("generate", "nobody"), "there is no run `nobody`"),
        (("plan",), "luthier init MODEL DATA"),
        (("--home", "a-file", "runs"), "is a file"),
        (("prepare", "header.csv"), "it is empty, or holds a header alone"),
        (("prepare", "rows"), "doesn't contain any data files"),
        (("prepare", "absent.jsonl"), "absent.jsonl"),
        (("look", "absent.yaml"), "does not exist"),
    ],
)
def test_what_is_not_there_is_your_input(luthier: Luthier, words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "rows").mkdir()
    (tmp_path / "header.csv").write_text("input,output\n")
    told = luthier(*words)
    assert told.code == 2 and told.err.startswith("error: ") and said in told.err and told.out == ""
    assert "Traceback" not in told.err and "defect" not in told.err


def test_a_defect_of_ours_leaves_a_log_and_no_traceback(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: Studio) -> list[runs.Run]:
        raise ZeroDivisionError("division by nobody")

    monkeypatch.setattr(Studio, "runs", broken)
    said = luthier("runs")
    assert said.code == 1 and "defect of luthier" in said.err and "Traceback" not in said.err
    assert "division by nobody" in (tmp_path / "home" / "defect.log").read_text()


def test_before_a_run_data_tokens_and_plan_are_shown(luthier: Luthier, experiment: Path) -> None:
    prepared = luthier("prepare", "pairs.jsonl")
    assert "input_output rows for classification" in prepared.err and Path(prepared.out.strip()).is_dir()
    assert json.loads(luthier("prepare", experiment, "--json").out)["labels"] == sorted(rows.COLOURS)
    looked = luthier("look", "--row", 1)
    assert looked.out.startswith("train 1 · ") and re.search(r":⟦␣[¦a-z]+⟨</s>⟩⟧\n", looked.out)
    assert "⟦trained⟧" in looked.err and "␣ space" in looked.err
    [seen] = (json.loads(line) for line in luthier("look", "--row", 1, "--json").out.splitlines())
    assert len(seen["pieces"]) == len(seen["trained"]) == len(seen["ids"]) == len(seen["special"])
    assert re.search(r"Output: (red|green|blue)</s>$", "".join(seen["pieces"]))
    planned = luthier("plan").out
    assert re.search(r"training\.learning_rate +0\.01 +you", planned) and "3 in all" in planned
    assert re.search(r"data\.format +input_output +found", planned) and "by formula" in planned
    assert re.search(r"rows +\d+ train, \d+ validation, \d+ test", planned) and re.search(r"–\d+ +█{40} +\d+", planned)
    measured = json.loads(luthier("plan", "--measure", "--json").out)["plan"]
    assert measured["measured"] and measured["memory_bytes"] > 2**20 and measured["seconds"] > 0


def test_rows_are_written_as_a_page_and_never_over_an_experiment(
    luthier: Luthier, experiment: Path, tmp_path: Path
) -> None:
    written = luthier("look", "--worst", "--html", "rows.html")
    page = (tmp_path / "rows.html").read_text()
    assert written.out == "rows.html\n" and "longest: " in page
    assert page.count('<section class="card"') >= 3 and "&lt;/s&gt;" in page
    both = luthier("look", "--row", "test:1", "--html", "rows.html", "--json")
    assert json.loads(both.out)["split"] == "test" and "longest" not in (tmp_path / "rows.html").read_text()
    before = experiment.read_text()
    for given, said in (("experiment.yaml", "is no name of a page"), ("nowhere/rows.html", "there is no folder")):
        refused = luthier("look", "--html", given)
        assert refused.code == 2 and said in refused.err and refused.out == ""
    assert experiment.read_text() == before


def test_after_a_run_it_is_listed_shown_asked_and_compared(
    luthier: Luthier, experiment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for seed in (0, 1):
        assert luthier("tune", "--set", f"seed={seed}", "--set", "task=generation").code == 0
    listed = luthier("runs").out.splitlines()
    assert len(listed) == 3 and all("done" in line and "exact match" in line for line in listed[1:])
    newest, older = (each["id"] for each in json.loads(luthier("runs", "--json").out))
    named = luthier("generate", newest, "item 3?", "--base")
    assert re.fullmatch(r"tuned: .*\nbase: .*\n", named.out) and named.err == ""
    assert newest in luthier("show").out and "exact match" in luthier("show", older).out
    assert json.loads(luthier("show", "--json").out)["report"]["verdict"]
    compared = luthier("compare", older, newest)
    assert f"{newest} " in compared.out and "seed" in compared.out and "B cannot be told from A" in compared.err
    told = json.loads(luthier("compare", older, newest, "--json").out)
    assert [run["run"] for run in told["runs"]] == [older, newest]
    assert told["shared"] == told["tests"]["exact_match"][0]["n"]
    assert luthier("compare", older, newest, "--html", "both.html").out == "both.html\n"
    assert "Two runs, side by side" in (tmp_path / "both.html").read_text(encoding="utf-8")
    for words, said in (
        ((older, older), "named twice"),
        ((older, "nobody"), "no run `nobody`"),
        ((older,) * 9, "9 runs"),
    ):
        refused = luthier("compare", *words)
        assert refused.code == 2 and said in refused.err and "Traceback" not in refused.err
    assert luthier("compare", older, newest, "--html", "both.yaml").code == 2
    rows.write(tmp_path / "fresh.jsonl", [{"input": f"item {i}?", "output": "red"} for i in range(90, 93)])
    assert "n = 3" in luthier("evaluate", newest, "--data", "fresh.jsonl").out
    answer = luthier("generate", newest, "item 3?")
    assert answer.code == 0 and answer.out.endswith("\n") and answer.err == ""
    monkeypatch.setattr(sys, "stdin", io.StringIO("item 3?\n"))
    assert luthier("generate", newest).out == answer.out
    (tmp_path / "prompts.txt").write_text("item 3?\nitem 4?\n")
    said = [
        json.loads(line)
        for line in luthier("generate", newest, "--file", "prompts.txt", "--base", "--json").out.splitlines()
    ]
    assert [each["prompt"] for each in said] == ["item 3?", "item 4?"] and said[0]["tuned"] == answer.out[:-1]
    assert all("base" in each for each in said)


def test_schema_is_json_schema_and_doctor_finds_this_machine_well(luthier: Luthier) -> None:
    assert json.loads(luthier("schema").out) == json.loads(json.dumps(spec.json_schema()))
    found = luthier("doctor")
    assert found.code == 0 and "device" in found.out and "torch" in found.out
    assert not any(item["wrong"] for item in json.loads(luthier("doctor", "--json").out))


def test_stop_on_a_run_at_rest_says_how_to_go_on(luthier: Luthier, tmp_path: Path) -> None:
    run = runs.create(tmp_path / "home", "idle", "0", {}, {})
    said = luthier("stop", run.id)
    assert said.code == 0 and f"luthier resume {run.id}" in said.err and runs.load(run.path).state == "stopped"


def test_advice_is_a_word_and_not_a_refusal(luthier: Luthier, experiment: Path) -> None:
    said = luthier("plan", "--set", "training.num_epochs=90")
    assert said.code == 0 and "note: `training.num_epochs` is 90; advised are 1 to 50" in said.err


def test_the_modules_define_no_verb_the_table_lacks() -> None:
    listed = {function for functions in app.COMMANDS.values() for function in functions} | set(searching.VERBS)
    public = {
        function
        for module in (begin, before, tuning, searching, after)
        for name, function in vars(module).items()
        if isinstance(function, FunctionType) and not name.startswith("_") and function.__module__ == module.__name__
    }
    assert listed == public
