"""What each cleaning step does to a text, and above all what it leaves alone."""

from __future__ import annotations

import doctest
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import pii, repairs

STEPS = (repairs.mojibake, repairs.control, repairs.composed, repairs.without_html, repairs.spaces)


def test_the_examples_in_the_docstrings() -> None:
    for module in (repairs, pii):
        found = doctest.testmod(module)
        assert found.attempted > 4 and not found.failed


CODE = [
    "SELECT * FROM t WHERE a<b AND c>d;",
    "SELECT COUNT(DISTINCT x) FROM t WHERE x < 5 AND y <> 'a  b'",
    "select name from t where a <b and c> d",
    "if (a<b && c>d) { return x; }",
    "std::vector<p> v; Map<String, List<a>> m;",
    "for (int i = 0; i<n; ++i) cout << i << '&amp;';",
    "template <class T> T max(T a, T b)",
    "x &lt; y == true",
    '{"html": "<b>bold</b>  text", "n": 1}',
    "def f(x):\n    return  x  # two  spaces",
    "    return x\n    # the body of a function",
    "Use `<b>` for  bold",
    "$$\\frac{a}{b}  <br>$$",
    "| a  | b   |\n| 1  | 22  |",
]


@pytest.mark.parametrize("text", CODE)
def test_code_and_tables_keep_their_signs_and_spaces(text: str) -> None:
    assert [step(text) for step in STEPS] == [text] * len(STEPS)


@pytest.mark.parametrize(
    "text",
    [
        "<think>so &amp; so</think> <b>yes</b>",  # a prompt's own marks
        "<|im_start|>user<br><|im_end|>",
        "<EMAIL> wrote to <PHONE>",
        '<?xml version="1.0"?><p>x</p>',
        "<my-card><b>x</b></my-card>",
        "How do I escape &amp; in HTML?",
        "the <br> tag breaks a line",
        "a < b and b > c",
        "5 <p or more",
        "AT&T; Q&A; R&D",
        "<a> is the first, <b> the second",
        "</s>",
    ],
)
def test_what_may_be_meant_is_no_html(text: str) -> None:
    assert repairs.without_html(text) == text


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("line one<br>line two<BR/>three", "line one\nline two\nthree"),
        ('see <a href="http://x.org/?a=1">here</a>', "see here"),
        ("<div class='x'><p>One</p><p>Two</p></div>", "One\nTwo"),
        ("<ul><li>a</li><li>b</li></ul>", "a\nb"),
        ("Tom &amp; Jerry &quot;live&quot;&nbsp;&#39;98 &#x2014; 3 &lt; 4", 'Tom & Jerry "live" \'98 — 3 < 4'),
        ("a<!-- ad -->b", "ab"),
        ("좋아요<br />정말 <b>최고</b>", "좋아요\n정말 최고"),
        ("&bogus; &#0; &#xD800; &amp;", "&bogus; &#0; &#xD800; &"),
        ("write to <EMAIL><br>soon", "write to <EMAIL>\nsoon"),
    ],
)
def test_html_remains_go(text: str, bare: str) -> None:
    assert repairs.without_html(text) == bare


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("Non Ã¨ buona", "Non è buona"),
        ("donâ€™t\nplain  line", "don’t\nplain  line"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ("“quoted” – naïve café, Ångström, MAÇÃ", "“quoted” – naïve café, Ångström, MAÇÃ"),
        ("안녕하세요, 東京タワー、你好", "안녕하세요, 東京タワー、你好"),
        ("Привет, мир! Γειά σου", "Привет, мир! Γειά σου"),
    ],
)
def test_garbled_text_is_read_again_and_other_text_is_not(text: str, repaired: str) -> None:
    assert repairs.mojibake(text) == repaired


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("a\x00b\x07c\x7f\x85", "abc\x85"),  # NEL is a line break: white space
        ("a\nb\tc\r\n", "a\nb\tc\r\n"),
        ("pass\u200bword\ufeff\u2060 so\u00adft", "password soft"),
        ("access\u202e\u2066 level\u2069", "access level"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("hid\U000e0041\U000e0042den", "hidden"),
        ("x\u200dy 가\u200c나", "xy 가나"),
        ("👨‍👩‍👧 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 क्\u200dष می\u200cخواهم", "👨‍👩‍👧 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 क्\u200dष می\u200cخواهم"),
        ("עברית\u200f (abc)\u200e", "עברית\u200f (abc)\u200e"),
        ("left\u200e right\u200f", "left right"),
        ("ภาษา\u200bไทย", "ภาษา\u200bไทย"),
    ],
)
def test_control_characters_go_and_joiners_stay_where_they_mean_something(text: str, repaired: str) -> None:
    assert repairs.control(text) == repaired


def test_one_spelling_a_letter() -> None:
    assert repairs.composed("한") == "한" and repairs.composed("é①ﬁ") == "é①ﬁ"


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("  a  b \t", "a b"),
        ("a\xa0b\u2009c\u3000d", "a b c\u3000d"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("a \n\n\n\n b", "a\n\n b"),
        ("a\tb", "a\tb"),
        ("\n\n    return 1\n    x = 2", "    return 1\n    x = 2"),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_white_space(text: str, repaired: str) -> None:
    assert repairs.spaces(text) == repaired


def test_texts_that_are_joined_keep_their_ends() -> None:
    assert repairs.spaces_inside(" positive  it is\n\n###\n\n") == " positive it is\n\n###\n\n"
    assert repairs.spaces_inside(" yes") == " yes" and repairs.spaces_inside("a\r\n") == "a\n"


@pytest.mark.parametrize(
    "text",
    [
        "N/A",
        "n/a.",
        "TODO",
        "null",
        "None",
        "NaN",
        "...",
        "…",
        "-",
        "---",
        "___",
        "?",
        "없음",
        "해당 없음",
        "なし",
        "未定",
        "暂无",
        "NA",
        "[deleted]",
        "#REF!",
        " ",
    ],
)
def test_placeholders(text: str) -> None:
    assert repairs.is_placeholder(text)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "0",
        "na",
        "yes.",
        "nothing",
        "deleted",
        "unknown",
        "none of them",
        "A",
        ":)",
        "없어요",
        "なに",
        "x",
        "todo list",
        "5",
    ],
)
def test_short_answers_are_answers(text: str) -> None:
    assert not repairs.is_placeholder(text)


@given(st.text(alphabet=st.sampled_from(list("ab <>/&;=\n\t\r\x00\u200b\xa0é한b{}\"'pr#1.|")), max_size=60))
def test_every_step_done_twice_is_done_once(text: str) -> None:
    for step in (repairs.control, repairs.composed, repairs.spaces, repairs.spaces_inside):
        assert step(step(text)) == step(text)


@pytest.mark.parametrize(
    "text", [" " * 200_000 + "x", "a " * 100_000, "<b" * 50_000, "select from " * 10_000, "&#1" * 50_000]
)
def test_long_texts_of_one_pattern_end(text: str) -> None:
    """No step needs more than linear time (the test's own time limit is the judge)."""
    assert all(len(step(text)) <= len(text) for step in STEPS)


@pytest.mark.parametrize("name", ["wikisql_groups", "advising_sql", "gsm8k", "bbbp_smiles"])
def test_sql_sums_and_formulas_of_real_data_hold_no_html(shared: Path, name: str) -> None:
    with gzip.open(shared / "data" / name / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    assert len(texts) > 500
    assert [text for text in texts if repairs.without_html(text) != text or repairs.mojibake(text) != text] == []
