"""What the gate finds in tokens, what it refuses, and what a person may accept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from luthier.data import gate
from luthier.data.examples import Encoded, Example
from luthier.errors import DataError

FACTS = gate.GateFacts(end_token_ids=(1, 9), bos_id=0, positions=8)


def _row(ids: list[int], trained: list[int], name: str = "a", **facts: Any) -> Encoded:
    flags = np.zeros(len(ids), bool)
    flags[trained] = True
    return Encoded(name, np.array(ids, np.int32), flags, **facts)


def _codes(row: Encoded, facts: gate.GateFacts = FACTS) -> list[str]:
    return [finding.code for finding in gate.inspect([row], [], facts)]


GOOD = _row([0, 5, 6, 7, 1], [3, 4])


@pytest.mark.parametrize(
    ("row", "codes"),
    [
        (GOOD, []),
        (_row([0, 5, 6, 9, 5, 6, 9], [2, 3, 5, 6]), []),  # two turns, both ended
        (_row([0, 5, 6, 7, 1], [3]), ["G01"]),
        (_row([0, 5, 6, 7, 4], [3, 4]), ["G01"]),
        (_row([0, 5, 6, 4, 5, 6, 9], [2, 5, 6]), ["G01"]),  # the first turn never ends
        (_row([0, 5, 6], []), ["G02"]),
        (_row([0, 5, 6, 7], [3], cut=True), ["G03"]),
        (_row([0, 5, 6, 9, 4, 5, 9], [2, 5, 6], cut=True), ["G01"]),
        (_row([0, 5, 6, 9, 4, 5, 6], [2, 3, 6], cut=True), ["G03"]),
        (_row([0, 0, 5, 1], [3]), ["G04"]),
        (_row([0, 5, 0, 1], [3]), []),  # not at the head
        (_row([0] + [5] * 7 + [1], [8]), ["G06"]),
        (_row([0, 5, 1, 6, 1], [2, 3, 4]), ["G07"]),
        (_row([0, 5, 1, 6, 1], [1, 2, 3, 4]), []),  # everything is trained
    ],
)
def test_findings(row: Encoded, codes: list[str]) -> None:
    assert _codes(row) == codes


def test_an_end_token_with_the_id_of_bos_is_no_second_bos() -> None:
    same = gate.GateFacts(end_token_ids=(0,), bos_id=0)
    assert _codes(_row([0, 5, 6, 0], [2, 3]), same) == []
    assert _codes(_row([0, 0], [1]), same) == []  # an empty prompt and an empty answer: BOS, end
    assert _codes(_row([0, 0, 5, 0], [2, 3]), same) == ["G04"]
    assert _codes(_row([0, 0, 0], [2]), same) == ["G04"]


def test_frozen_untrained_end_tokens_and_unknown_answers_are_warned_about() -> None:
    facts = gate.GateFacts((1,), 0, 8, frozenset({1}), unknown_id=3)
    (end,) = gate.inspect([GOOD], [], facts)
    assert (end.code, end.severity) == ("G05", "warn")
    assert _codes(_row([0, 3, 6, 7, 1], [3, 4]), gate.GateFacts((1,), 0, 8, unknown_id=3)) == []
    assert _codes(_row([0, 5, 6, 3, 1], [3, 4]), gate.GateFacts((1,), 0, 8, unknown_id=3)) == ["G08"]


def test_virtual_tokens_and_families_count_against_the_positions() -> None:
    row = _row([0, 5, 6, 7, 7, 7, 7, 1], [6, 7])
    assert _codes(row) == []
    assert _codes(row, gate.GateFacts((1,), 0, 8, virtual_tokens=1)) == ["G06"]
    assert _codes(row, gate.GateFacts((1,), 0, None, virtual_tokens=99)) == []
    assert _codes(row, gate.GateFacts((1,), 0, 6, family="seq2seq")) == []  # source 6, target 2
    assert _codes(row, gate.GateFacts((1,), 0, 6, family="seq2seq", virtual_tokens=1)) == ["G06"]
    label = _row([2, 5, 6, 3], [], label=1)
    assert _codes(label, gate.GateFacts((), positions=4, family="encoder")) == []
    assert _codes(_row([2, 5], []), gate.GateFacts((), family="encoder")) == ["G02"]


def test_findings_count_their_rows_and_name_the_first() -> None:
    rows = [_row([0, 5, 6, 7, 4], [3, 4], name) for name in "abcdefgh"] + [GOOD]
    examples = [Example(name, "text", file="f.jsonl", line=i) for i, name in enumerate("abcdefgh", 1)]
    (finding,) = gate.inspect(rows, examples, FACTS)
    assert finding.count == 8 and "(8 of 9 rows)" in finding.message
    assert finding.rows == tuple(f"f.jsonl:{i}" for i in range(1, 6))
    with pytest.raises(DataError) as caught:
        gate.refuse([finding])
    assert caught.value.message.startswith("G01: the end token") and "f.jsonl:5, …" in caught.value.message
    assert caught.value.where == "f.jsonl:1"
    assert "data.accept: [G01]" in (caught.value.hint or "")


def test_only_what_can_be_meant_can_be_accepted() -> None:
    misled, empty, cut = (
        gate.inspect([row], [], FACTS)
        for row in (_row([0, 5, 6, 7, 4], [3, 4]), _row([0, 5], []), _row([0, 5, 7], [2], cut=True))
    )
    gate.refuse([*misled, *cut], ["G01"])
    gate.refuse(cut)
    for findings, accepted in ((misled, []), (misled, ["G02"]), (empty, ["G02"]), ([*misled, *empty], ["G01"])):
        with pytest.raises(DataError):
            gate.refuse(findings, accepted)
    with pytest.raises(DataError, match="`G1` is not a finding's code") as caught:
        gate.refuse([], ["G1"])
    assert caught.value.where == "data.accept"


def test_rows_longer_than_all_of_training_are_said() -> None:
    long = _row([0, 5, 6, 7, 7, 1], [5], "long")
    (finding,) = gate.longer_than_training([GOOD], [GOOD, long], [Example("long", "text", file="v", line=3)])
    assert (finding.code, finding.severity, finding.rows, finding.count) == ("G09", "warn", ("v:3",), 1)
    assert gate.longer_than_training([long], [GOOD], []) == []
