"""Tokens in a terminal: trained, special and neighbouring ones told apart, with colour and without."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from luthier.cli import show, tokens
from luthier.data.seen import Seen
from tests.tokens import long_row, row


def test_without_colour_brackets_say_what_is_trained_special_and_where_tokens_end() -> None:
    assert tokens.tokens(row(), plain=True).plain == "⟨<s>⟩a¦␣b⟦↵\n<c>⟨</s>⟩⟧"
    assert tokens.tokens(row(trained=(False,) * 5), plain=True).plain == "⟨<s>⟩a¦␣b¦↵\n<c>⟨</s>⟩"
    apart = row(special=(False,) * 5, trained=(True, False, True, False, True))
    assert tokens.tokens(apart, plain=True).plain == "⟦<s>⟧a⟦␣b⟧↵\n<c>⟦</s>⟧"


def test_with_colour_nothing_is_added_and_each_token_has_a_style_of_its_own() -> None:
    shown = tokens.tokens(row(), plain=False)
    assert shown.plain == "<s>a␣b↵\n<c></s>"
    styles = [str(span.style) for span in shown.spans]
    assert ["green" in style for style in styles] == [False, False, False, False, True, True, True]
    assert ["reverse" in style for style in styles] == [True, *[False] * 5, True]
    assert ["underline" in style for style in styles] == [False, True, False, False, True, True, False]
    assert ["dim" in style for style in styles] == [False, False, True, False, True, False, False]  # marks are ours


def test_a_long_stretch_is_shown_at_its_ends_and_says_how_much_is_between() -> None:
    seen = long_row(read=2_000, learned=3 * tokens.EDGE)
    shown = tokens.tokens(seen, plain=True).plain
    between = 2_000 - 2 * tokens.EDGE
    assert tokens.shortened(seen) and f"\n… {between:,} more tokens …\n" in shown
    assert f"{tokens.EDGE - 1},\n" in shown and f"\n{2_000 - tokens.EDGE},¦" in shown
    assert shown.count(",") == 1 + 2 * tokens.EDGE + 3 * tokens.EDGE  # what is trained is all there
    assert not tokens.shortened(long_row(read=3 * tokens.EDGE, learned=1))


def test_the_heading_names_the_row_its_figures_and_why_it_is_shown() -> None:
    seen = row(worst=("longest: 5 tokens",), fate="cut", remark="cut: 5 of its 9 tokens are within the limit")
    assert tokens.heading(seen).plain.splitlines() == [
        "train 1 · rows.jsonl:1 · 5 tokens, 2 trained (40.0 %)",
        "longest: 5 tokens",
        "cut: 5 of its 9 tokens are within the limit",
    ]
    assert "5 tokens, class red" in tokens.heading(row(label="red")).plain


@pytest.mark.parametrize(("colour", "plain"), [("truecolor", False), (None, True)])
def test_rows_go_to_standard_output_and_the_legend_beside_it(
    monkeypatch: pytest.MonkeyPatch, colour: str | None, plain: bool
) -> None:
    out, err = io.StringIO(), io.StringIO()
    consoles = [
        Console(file=file, color_system=colour, force_terminal=colour is not None, no_color=False, highlight=False)  # type: ignore[arg-type]
        for file in (out, err)
    ]
    monkeypatch.setattr(show, "out", lambda: consoles[0])
    monkeypatch.setattr(show, "err", lambda: consoles[1])
    seen: Seen = row()
    show.rows([seen, seen])
    assert out.getvalue().count("rows.jsonl:1") == 2 and ("⟦" in out.getvalue()) == plain
    assert ("\x1b[" in out.getvalue()) == (not plain) and err.getvalue().count("line end") == 1
    assert "shortened" not in err.getvalue()
