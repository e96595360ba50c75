"""What the gate finds in tokens, what it refuses, and what a person may accept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import gate
from luthier.data.examples import Encoded, Example
from luthier.errors import DataError
from tests import tiny

FACTS = gate.GateFacts(end_token_ids=(1, 9), bos_id=0, positions=8)


def _row(ids: list[int], trained: list[int], name: str = "a", **facts: Any) -> Encoded:
    flags = np.zeros(len(ids), bool)
    flags[trained] = True
    return Encoded(name, np.array(ids, np.int32), flags, **facts)


def _codes(row: Encoded, facts: gate.GateFacts = FACTS) -> list[str]:
    return [finding.code for finding in gate.inspect([row], [], facts)]


GOOD = _row([0, 5, 6, 7, 1], [3, 4])
CASES = [
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
    (_row([0, 5, 6, 7, 1], [3, 4], spelled=2), ["G10"]),
    (_row([], []), ["G02"]),
]


@pytest.mark.parametrize(("row", "codes"), CASES)
def test_findings(row: Encoded, codes: list[str]) -> None:
    assert _codes(row) == codes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, len(CASES) - 2), min_size=1, max_size=30))
def test_rows_do_not_change_each_others_findings(chosen: list[int]) -> None:
    """Blocks judge many rows at once: what is found in a row is what is found in it alone."""
    rows = [_row(CASES[i][0].ids_L.tolist(), np.flatnonzero(CASES[i][0].train_L).tolist(), f"{n}",
                 cut=CASES[i][0].cut, spelled=CASES[i][0].spelled) for n, i in enumerate(chosen)]  # fmt: skip
    found = {finding.code: finding for finding in gate.inspect(rows, [], FACTS)}
    for code in gate.CHECKS:
        hits = [f"{n}" for n, i in enumerate(chosen) if code in CASES[i][1]]
        assert (found[code].count if code in found else 0) == len(hits)
        assert (list(found[code].rows) if code in found else []) == hits[: gate.SHOWN]


def test_an_end_token_with_the_id_of_bos_is_no_second_bos() -> None:
    same = gate.GateFacts(end_token_ids=(0,), bos_id=0)
    assert _codes(_row([0, 0], [1]), same) == []
    assert _codes(_row([0, 0, 5, 0], [2, 3]), same) == ["G04"]


def test_what_a_frozen_base_cannot_say() -> None:
    facts = gate.GateFacts((1,), 0, 8, frozenset({1}), unknown_id=3)
    (end,) = gate.inspect([GOOD], [], facts)
    assert (end.code, end.severity) == ("G05", "warn")
    assert _codes(_row([0, 3, 6, 7, 1], [3, 4]), gate.GateFacts((1,), 0, 8, unknown_id=3)) == []
    assert _codes(_row([0, 5, 6, 3, 1], [3, 4]), gate.GateFacts((1,), 0, 8, unknown_id=3)) == ["G08"]


def test_a_pad_token_that_ends_answers_and_a_dated_template_are_said_and_refuse_nothing() -> None:
    facts = gate.GateFacts((1,), 0, 8, pad_id=1, dated=True)
    pad, dated = gate.inspect([GOOD, GOOD], [], facts)
    assert (pad.code, pad.severity, pad.count) == ("G11", "note", 2) and (dated.code, dated.severity) == ("G12", "warn")
    gate.refuse([pad, dated])
    assert _codes(GOOD, gate.GateFacts((1,), 0, 8, pad_id=2)) == []


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
    (finding,) = gate.inspect(rows, examples, FACTS, "validation")
    assert (finding.count, finding.split) == (8, "validation") and "(8 of 9 rows of validation)" in finding.message
    assert finding.rows == tuple(f"f.jsonl:{i}" for i in range(1, 6))
    with pytest.raises(DataError) as caught:
        gate.refuse([finding])
    assert caught.value.message.startswith("G01: the end token") and "f.jsonl:5, …" in caught.value.message
    assert caught.value.where == "f.jsonl:1"
    assert "data.accept: [G01]" in (caught.value.hint or "")


def test_who_has_to_write_an_end_token_is_told_which() -> None:
    text = tiny.tokenizer("causal")
    facts = gate.GateFacts(end_token_ids=(text.eos_token_id,), bos_id=text.bos_token_id)
    (finding,) = gate.inspect([_row([0, 5, 6, 7], [2, 3])], [], facts, tokenizer=text)
    assert finding.code == "G01" and finding.hint.endswith("(its end tokens: </s>)")


def test_a_finding_shows_the_tokens_around_its_place_with_special_ones_written_out() -> None:
    text = tiny.tokenizer("causal")
    ids = [0, *text("Input: how\nmany?\nOutput: three").input_ids[1:]]
    row = _row(ids, [len(ids) - 1])
    (finding,) = gate.inspect([row], [], gate.GateFacts((1,), 0), tokenizer=text)
    (shown,) = finding.excerpts
    last = text.decode(ids[-1:])
    assert shown.startswith("…") and shown.endswith(f"⟦{last}⟧") and "↵Output:" in shown
    assert gate.excerpt(_row([0, *ids[1:], 1, 5, 6, 7, 8, 9], []), len(ids), text).count("⟦</s>⟧") == 1
    assert gate.excerpt(_row([0, 5], []), 0, text).startswith("⟦<s>⟧")
    with pytest.raises(DataError) as caught:
        gate.refuse([finding])
    assert shown in caught.value.message


def test_rows_are_read_once_and_no_more_than_a_block_is_kept() -> None:
    alive: list[int] = []

    def rows() -> Iterator[Encoded]:
        for i in range(3 * gate._BLOCK):
            alive.append(i)
            yield _row([0, 5, 6, 7, 4 if i % 1000 == 999 else 1], [3, 4], f"{i}")

    read: list[str] = []

    def examples() -> Iterator[Example]:
        for i in range(3 * gate._BLOCK):
            read.append(f"{i}")
            yield Example(f"{i}", "text", file="f", line=i + 1)

    (finding,) = gate.inspect(rows(), examples(), FACTS)
    assert alive == list(range(3 * gate._BLOCK))
    assert (finding.count, finding.rows[0], finding.rows[-1]) == (12, "f:1000", "f:5000")
    assert len(read) == 5000  # up to the last row that is named


def test_only_what_can_be_meant_can_be_accepted() -> None:
    misled, empty, cut = (
        gate.inspect([row], [], FACTS)
        for row in (_row([0, 5, 6, 7, 4], [3, 4]), _row([0, 5], []), _row([0, 5, 7], [2], cut=True))
    )
    gate.refuse([*misled, *cut], ["G01"])
    gate.refuse(cut)
    assert gate.is_accepted(misled[0], ["G01"]) and not gate.is_accepted(empty[0], ["G02"])
    for findings, accepted in ((misled, []), (misled, ["G02"]), (empty, ["G02"]), ([*misled, *empty], ["G01"])):
        with pytest.raises(DataError):
            gate.refuse(findings, accepted)
    with pytest.raises(DataError, match="`G1` is not a finding's code") as caught:
        gate.refuse([], ["G1"])
    assert caught.value.where == "data.accept"


def test_rows_longer_than_all_of_training_are_said() -> None:
    long = _row([0, 5, 6, 7, 7, 1], [5], "long")
    (finding,) = gate.inspect([GOOD, long], [Example("long", "text", file="v", line=3)], FACTS, "test", longest=5)
    assert (finding.code, finding.severity, finding.rows, finding.count) == ("G09", "warn", ("v:3",), 1)
    assert gate.inspect([GOOD], [], FACTS, "test", longest=6) == []
