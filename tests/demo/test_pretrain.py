"""The making of the embedded base: one seed gives one model, stopped on the way or not. A few steps, two rows each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from luthier.demo import pretrain
from luthier.demo.network import train_tokenizer

STEPS, ROWS = 6, 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(0, documents=200)


Train = Callable[[Path], pretrain.Training]


@pytest.fixture
def train(tokenizer: Tokenizer) -> Train:
    return lambda folder: pretrain.train(tokenizer, 0, STEPS, folder, rows=ROWS, save_every=2)


def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole")
    made, make = [], pretrain.make_batch

    def until_the_fourth(tokenizer: Tokenizer, seed: int, step: int, rows: int) -> pretrain.Batch:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(step)
        return make(tokenizer, seed, step, rows)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pretrain, "make_batch", until_the_fourth)
        train(tmp_path / "parts")
    resumed = train(tmp_path / "parts")
    assert made == [0, 1, 2] and whole.step == resumed.step == STEPS
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.masters, resumed.masters, strict=True):
        assert torch.equal(one, other)
        for name, tensor in whole.optimizer.state[one].items():
            assert torch.equal(tensor, resumed.optimizer.state[other][name])
    timeless = [[{**line, "seconds": 0} for line in each.log] for each in (whole, resumed)]
    assert timeless[0] == timeless[1] and len(whole.log) == STEPS // 2


def test_a_checkpoint_of_another_run_is_not_taken_for_this_one(
    train: Train, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    train(tmp_path)
    with pytest.raises(SystemExit, match="is of another run"):
        pretrain.train(tokenizer, 1, STEPS, tmp_path, rows=ROWS)
