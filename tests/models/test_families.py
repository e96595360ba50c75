"""Every family, flat or padded, equals the padded PEFT model; plan, run and answers follow the layout it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier import runs, spec, worker
from luthier.data.examples import Encoded
from luthier.evaluation import generate
from luthier.models import base as bases
from luthier.models import facts
from luthier.models.methods import attach
from luthier.studio import Studio
from tests import rows as files
from tests import tiny
from tests.conftest import Starting
from tests.equivalence.workbench import LORA, PROMPT, load, padded_loss, rows, tune
from tests.models import families

ALONE = ("tiny_bloom", "tiny_gpt_neo", "tiny_deberta_v2")


@pytest.mark.parametrize("kind", families.FAMILIES)
@pytest.mark.parametrize("method", [LORA, PROMPT], ids=["lora", "prompt"])
def test_loss_and_every_gradient_equal_pefts_padded_batch(kind: str, method: spec.Lora | spec.PromptTuning) -> None:
    found = families.compared(kind, method)
    assert found.loss < 5e-6
    assert found.gradient < 2e-6 * max(1.0, found.largest)
    assert not found.blind, "no gradient: the comparison would see nothing"


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_the_page_and_the_plan_say_what_a_base_does(kind: str) -> None:
    """The committed table is what its command writes, but for digits of rounding; shapes alone foresee the layout."""
    (line,) = [line for line in families.PAGE.read_text("utf-8").splitlines() if families.begin(kind) in line]
    for figure in (part.split(" of ")[0] for part in line.strip("| ").split(" | ")[3:]):
        assert 0 <= float(figure) < 2e-5
    found = families.compared(kind, LORA)
    if tiny.family(kind) != "encoder":  # whose plan reads the weights
        assert families.planned(kind) == found.layout
    assert bool(found.note) == (found.layout == "padded" and tiny.family(kind) != "seq2seq")


def test_every_tiny_family_is_listed() -> None:
    assert set(families.FAMILIES) == {*tiny.KINDS, *tiny.MORE}


def test_relative_positions_have_the_limit_of_their_table() -> None:
    limits = {kind: facts.inspect(str(tiny.build(kind))).positions for kind in ("tiny_mpt", "tiny_bloom", "tiny_t5")}
    assert limits == {"tiny_mpt": 2048, "tiny_bloom": None, "tiny_t5": None}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ALONE)
def test_half_precision_does_not_hide_attention_of_ones_own(kind: str, dtype: str) -> None:
    model = spec.Model(name=str(tiny.build(kind)), dtype=dtype)
    assert attach(bases.load(model, LORA, labels=files.COLOURS), [LORA], [0]).layout == "padded"


@pytest.mark.parametrize("method", [LORA, PROMPT], ids=["lora", "prompt"])
def test_answers_of_a_padded_base_are_its_own(method: spec.Lora | spec.PromptTuning) -> None:
    """Likelihoods, class scores and greedy answers through padded rows, against one row at a time."""
    tuned = tune(load(tiny.build, "tiny_bloom"), method)
    examples = rows("causal")
    told = generate.likelihoods(tuned, 0, examples)
    base = load(tiny.build, "tiny_bloom")
    bare = generate.likelihoods(attach(base, [], []), None, examples)
    for row, mine, plain in zip(examples, told, bare, strict=True):
        expected = float(padded_loss("causal", base.model, [row], None)) * mine.tokens
        assert plain.nll == pytest.approx(expected, rel=1e-4)
        assert mine.nll != pytest.approx(expected, rel=1e-4)
    candidates = [[row, examples[0]] for row in examples]
    scores = generate.label_scores(tuned, 0, candidates)
    assert scores[:, 0] == pytest.approx([-one.nll for one in told], rel=1e-4)
    answers = [one.ids for one, _ in generate.complete(tuned, 0, examples, 5)]
    assert answers == [generate.complete(tuned, 0, [row], 5)[0][0].ids for row in examples]


def test_classes_of_a_padded_encoder_do_not_depend_on_company() -> None:
    tuned = tune(load(tiny.build, "tiny_deberta_v2"), LORA)
    examples: list[Encoded] = rows("encoder")
    together = generate.class_logits(tuned, 0, examples)
    alone = [generate.class_logits(tuned, 0, [row])[0] for row in examples]
    torch.testing.assert_close(torch.from_numpy(together), torch.tensor(alone), atol=1e-5, rtol=1e-4)


def test_plan_and_run_say_that_a_family_runs_padded(tmp_path: Path, starting: Starting) -> None:
    starting(lambda run: run)
    said = {
        "name": "tiny",
        "model": str(tiny.build("tiny_bloom")),
        "data": str(files.pairs(tmp_path)),
        "method": "lora",
    }
    experiment = spec.from_mapping(said | {"training": {"num_epochs": 1, "batch_size": 8}})
    studio = Studio(tmp_path / "home")
    for method in (LORA, PROMPT):
        planned = studio.plan(experiment.model_copy(update={"method": method}))
        assert any("bloom models run padded" in warning for warning in planned.warnings)
        assert planned.shared_tokens == 0
    run = studio.tune(experiment, new=True)
    worker.work(run.path, lambda: False)
    assert runs.load(run.path).state == "done"
    notes = [event for event in runs.read_events(run.path) if isinstance(event, runs.Noted) and event.kind == "layout"]
    assert len(notes) == 1 and "bloom models run padded" in notes[0].message
