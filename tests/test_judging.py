"""A judge in a run, beside a run, and a model behind an endpoint: from the description to the report on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier import engines, runs, spec, worker
from luthier.errors import MissingExtra, NotFound, SpecError
from luthier.evaluation import endpoint, judge
from luthier.evaluation.report import read_json
from luthier.studio import Studio, report
from tests import rows
from tests.cli.conftest import Luthier, luthier
from tests.conftest import Starting
from tests.evaluation import fake
from tests.evaluation.fake import Said

pytest.importorskip("openai", reason="needs the extra `judge`")
assert luthier  # a fixture

FEW = {"num_epochs": 1, "batch_size": 16, "learning_rate": 1e-2}
NOBODY = "http://127.0.0.1:9/v1"
Experiments = Callable[..., spec.Experiment]


@pytest.fixture
def studio(tmp_path: Path, starting: Starting) -> Studio:
    """A studio whose worker works in this process, at once."""

    def start(run: runs.Run) -> runs.Run:
        worker.work(run.path, lambda: False)
        return runs.load(run.path)

    starting(start)
    return Studio(tmp_path / "home")


@pytest.fixture
def experiment(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiments:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    values = {"name": "tiny", "model": str(tiny("tiny_llama")), "data": str(rows.pairs(tmp_path)), "training": FEW}

    def make(**parts: Any) -> spec.Experiment:
        return spec.from_mapping(values | parts)

    return make


def wish(url: str, **more: Any) -> dict[str, Any]:
    return {"judge": {"model": "fake", "base_url": url} | more}


def test_a_run_ends_with_what_the_judge_says(studio: Studio, experiment: Experiments) -> None:
    with fake.serving(fake.fair) as server:
        run = studio.tune(experiment(evaluation=wish(server.url)))
    told = report(run)
    assert run.state == "done" and told.judge is not None and not told.judge.unreliable
    assert told.judge.score == told.scores["judge"].value and told.judge.missing == 0 and len(told.judge.canaries) == 10
    assert told.scores["judge"].n == told.scores["accuracy"].n and "judge" in told.base_scores
    assert told.comparisons["judge"].n == told.scores["judge"].n
    assert told.scores["judge"].value == told.scores["accuracy"].value  # this judge compares with the reference
    assert any("tokens in" in note for note in told.notes) and run.facts["unjudged"] == 0
    assert len(judge.table(run.path)) == 2 * told.judge.asked
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "judge (fake)" in page
    notes = [event.message for event in runs.read_events(run.path) if isinstance(event, runs.Noted)]
    assert all("error" not in note for note in notes)


def test_the_judge_may_lead_and_two_judged_runs_compare(studio: Studio, experiment: Experiments) -> None:
    with fake.serving(fake.fair) as server:
        wishes = wish(server.url, mode="rubric") | {"metrics": ["judge", "accuracy"]}
        one, two = (studio.tune(experiment(evaluation=wishes, method={"rank": rank})) for rank in (2, 4))
    assert report(one).verdict.startswith("judge (fake): tuned ")
    assert next(iter(report(one).scores)) == "judge" and report(one).scores["judge"].value >= 1
    found = studio.compare([one, two])
    assert found.tests["judge"][0].n == report(one).scores["judge"].n


def test_a_silent_judge_leaves_the_report_and_the_same_command_completes_it(
    studio: Studio, experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    silent = True
    with fake.serving(lambda request: Said(status=503, body=b"{}") if silent else fake.fair(request)) as server:
        asked = experiment(evaluation=wish(server.url))
        first = studio.tune(asked)
        before = report(first)
        assert first.state == "done" and "accuracy" in before.scores and "judge" not in before.scores
        assert before.judge is not None and before.judge.missing == before.judge.asked and first.facts["unjudged"] > 0
        assert any("are missing" in note and "status 503" in note for note in before.notes)
        silent = False
        second = studio.tune(asked)
        calls = len(server.requests)
        third = studio.tune(asked)
        assert len(server.requests) == calls
    told = report(second)
    assert second.id == first.id == third.id and second.facts["unjudged"] == 0
    assert told.judge is not None and told.judge.missing == 0 and told.scores["accuracy"] == before.scores["accuracy"]


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = endpoint.Endpoint
    for module in (judge, endpoint):
        monkeypatch.setattr(module, "Endpoint", lambda *given: quick(*given, retries=0, timeout=5.0, pause=0.0))


def test_a_run_that_had_no_judge_is_judged_later_without_its_model(
    studio: Studio, experiment: Experiments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier import workbench

    run = studio.tune(experiment())
    assert report(run).judge is None
    monkeypatch.setattr(workbench, "open_run", lambda run: pytest.fail("no model is needed"))
    with fake.serving(fake.fair) as server:
        sets = [f"evaluation.judge.base_url={server.url}", "evaluation.judge.model=fake"]
        told = studio.evaluate(run, None, sets)
        frame = judge.table(run.path / "evaluations" / "test").to_pylist()
        labels = [{"id": line["id"], "label": line["verdict"]} for line in frame if line["side"] == "tuned"]
        path = rows.write(tmp_path / "labels.jsonl", labels)
        again = studio.evaluate(run, None, [*sets, f"evaluation.judge.labelled={path}"])
    assert told.judge is not None and told.judge.missing == 0 and told.judge.agreement is None
    assert again.judge is not None and again.judge.agreement == 1.0
    assert read_json(run.path / "evaluations" / "test" / "report.json") == again
    assert report(run).judge is None
    with pytest.raises(SpecError, match="can only be scored otherwise"):
        studio.evaluate(run, None, ["training.num_epochs=3"])


def test_other_rows_are_judged_too(studio: Studio, experiment: Experiments, tmp_path: Path) -> None:
    fresh = rows.write(tmp_path / "fresh.jsonl", [{"input": f"item {i}?", "output": "red"} for i in range(90, 96)])
    with fake.serving(fake.fair) as server:
        run = studio.tune(experiment(evaluation=wish(server.url)))
        told = studio.evaluate(run, fresh)
    assert told.judge is not None and told.judge.asked == 6 and told.scores["judge"].n == 6


@pytest.mark.parametrize(
    ("parts", "kind", "said"),
    [
        ({"judge": "gpt-4o-mini"}, SpecError, "neither a key nor an address"),
        (
            {"judge": {"base_url": "http://127.0.0.1:9/v1", "mode": "pairwise"}, "compare_base": False},
            SpecError,
            "base",
        ),
        ({"judge": {"base_url": NOBODY, "labelled": "lost.jsonl"}}, NotFound, "lost.jsonl"),
    ],
)
def test_what_could_not_be_judged_is_refused_before_training(
    parts: dict[str, Any], kind: type[Exception], said: str, studio: Studio, experiment: Experiments
) -> None:
    with pytest.raises(kind, match=said):
        studio.tune(experiment(evaluation=parts))
    assert studio.runs() == []


def test_without_the_library_the_command_that_installs_it_is_said_before_training(
    studio: Studio, experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="`openai`"):
        studio.tune(experiment(evaluation=wish("http://127.0.0.1:9/v1")))
    assert studio.runs() == []


def test_labels_beside_the_file_are_found_and_change_no_fingerprint(tmp_path: Path) -> None:
    rows.write(tmp_path / "labels.jsonl", [{"id": "x", "label": 1}])
    path = tmp_path / "experiment.yaml"
    path.write_text("model: m\ndata: d\nevaluation: {judge: {model: j, labelled: labels.jsonl}}\n")
    one = spec.load(path)
    assert one.evaluation.judge is not None and one.evaluation.judge.labelled == str(tmp_path / "labels.jsonl")
    other = spec.load(path, ["evaluation.judge.labelled=null"])
    assert spec.fingerprint(one, "", None) == spec.fingerprint(other, "", None)
    assert spec.fingerprint(one, "", None) != spec.fingerprint(spec.load(path, ["evaluation.judge.model=k"]), "", None)


def test_the_worker_of_a_judged_run_gets_the_key_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for the judge")
    for name, wanted in (("fake", True), (None, False)):
        run = runs.create(tmp_path / "home", "tiny", str(wanted), {}, {"model": str(tmp_path), "judge": name})
        assert ("OPENAI_API_KEY" in engines._environment(run)) == wanted


def test_the_key_of_a_judge_is_nowhere_in_the_home(
    studio: Studio, experiment: Experiments, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct-horse-battery")
    with fake.serving(lambda request: fake.verdict(1, "correct-horse-battery")) as server:
        run = studio.tune(experiment(evaluation=wish(server.url)))
    assert server.headers[0]["authorization"] == "Bearer correct-horse-battery" and run.state == "done"
    assert "correct-horse-battery" not in "".join(capfd.readouterr())
    for path in studio.home.rglob("*"):
        assert not path.is_file() or b"correct-horse-battery" not in path.read_bytes(), path


# --- a model behind an endpoint --------------------------------------------------------------------------------------
def colours(request: dict[str, Any]) -> str:
    """Answers the questions of `rows.pairs`, some of them rightly."""
    number = int("".join(filter(str.isdigit, request["messages"][-1]["content"])) or 0)
    return rows.COLOURS[number % 3] if number % 2 else "red"


def test_a_model_behind_an_endpoint_is_scored(luthier: Luthier, tmp_path: Path) -> None:
    rows.pairs(tmp_path)
    with fake.serving(colours) as server:
        said = luthier("evaluate", "openai:some", "--data", "pairs.jsonl", "--base-url", server.url, "--json")
        assert len(server.requests) == 48
        again = luthier("evaluate", "openai:some", "--data", "pairs.jsonl", "--base-url", server.url, "--json")
        assert len(server.requests) == 48 and again.out == said.out
    told = json.loads(said.out)
    assert said.code == 0 and told["scores"]["accuracy"]["n"] == 48 and "perplexity" not in told["scores"]
    assert told["scores"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert server.requests[0]["messages"][0]["content"].startswith("item 0?") and server.requests[0]["model"] == "some"
    assert "Answer with one of these" in server.requests[0]["messages"][0]["content"]


def test_chats_go_as_messages_and_templates_are_filled(luthier: Luthier, tmp_path: Path) -> None:
    rows.chats(tmp_path, 4)
    rows.write(tmp_path / "plain.jsonl", [{"input": f"{i}", "output": f"long answer number {i}"} for i in range(4)])
    text = "model: {name: openai:some, base_url: URL}\ndata: {train: x, template: 'Say: {input}'}\n"
    with fake.serving(lambda request: "it is 1") as server:
        (tmp_path / "remote.yaml").write_text(text.replace("URL", server.url) + "evaluation: {temperature: 0.5}\n")
        assert luthier("evaluate", "openai:some", "--data", "chats.jsonl", "--base-url", server.url).code == 0
        assert server.requests[0]["messages"] == [{"role": "user", "content": "item 0?"}]
        said = luthier("evaluate", "remote.yaml", "--data", "plain.jsonl", "--set", "evaluation.max_new_tokens=7")
    assert said.code == 0, said.err
    last = server.requests[-1]
    assert last["messages"][0]["content"].startswith("Say: ") and (last["max_tokens"], last["temperature"]) == (7, 0.5)


def test_rows_without_an_answer_are_left_out_and_asked_again(
    luthier: Luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.pairs(tmp_path)
    broken = True

    def answer(request: dict[str, Any]) -> Said | str:
        bad = broken and "item 7?" in request["messages"][0]["content"]
        return Said(status=400, body=b"{}") if bad else colours(request)

    command = ("evaluate", "openai:some", "--data", "pairs.jsonl", "--json", "--base-url")
    with fake.serving(answer) as server:
        first = json.loads(luthier(*command, server.url).out)
        broken = False
        second = json.loads(luthier(*command, server.url).out)
        assert len(server.requests) == 49
    assert first["scores"]["accuracy"]["n"] == 47 and any("1 rows got no answer" in note for note in first["notes"])
    assert second["scores"]["accuracy"]["n"] == 48 and not any("no answer" in note for note in second["notes"])


def test_what_such_a_model_cannot_do_is_said(
    luthier: Luthier, tmp_path: Path, experiment: Experiments, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    with pytest.raises(SpecError, match="nothing can be tuned"):
        studio.tune(experiment(model="openai:gpt-4o-mini"))
    with pytest.raises(SpecError, match="only an `openai:NAME` is asked"):
        experiment(model={"name": "org/base", "base_url": "http://x/v1"})
    said = luthier("evaluate", "openai:some", "--data", "pairs.jsonl")
    assert said.code == 2 and "neither a key nor an address" in said.err
    rows.write(tmp_path / "text.jsonl", [{"text": f"some text {i}"} for i in range(3)])
    with fake.serving(colours) as server:
        plain = luthier("evaluate", "openai:some", "--data", "text.jsonl", "--base-url", server.url)
    assert plain.code == 2 and "plain text asks nothing" in plain.err and not server.requests
    lost = luthier("evaluate", "openai:some", "--data", "pears.jsonl", "--base-url", "http://127.0.0.1:9/v1")
    assert lost.code == 2 and "did you mean" in lost.err
    nobody = luthier("evaluate", "openai:some", "--data", "pairs.jsonl", "--base-url", "http://127.0.0.1:9/v1")
    assert nobody.code == 2 and "no row was answered" in nobody.err and "cannot be reached" in nobody.err
