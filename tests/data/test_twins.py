"""Normal forms, shingles, MinHash and true Jaccard, against plain Python."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import twins

ALPHABETS = {
    "en": "abcdefghijklmnopqrstuvwxyz",
    "ko": "가나다라마바사아자차카타파하거너더러",
    "ja": "あいうえおかきくけこ日本語文字山川",
}


def words(language: str, count: int, seed: int = 0) -> list[str]:
    """Made-up words of a script."""
    rng, longest = random.Random(seed), 8 if language == "en" else 3
    return ["".join(rng.choices(ALPHABETS[language], k=rng.randint(2, longest))) for _ in range(count)]


def sentence(language: str, known: list[str], rng: random.Random, length: int = 14) -> list[str]:
    """Words that say nothing; `spoken` joins them as the language does."""
    return rng.choices(known, k=length)


def spoken(language: str, said: list[str]) -> str:
    return ("" if language == "ja" else " ").join(said)


def shingles(text: str) -> set[str]:
    """The documented shingles, one by one."""
    sizes = [2 if ord(letter) >= 0x2E80 else 3 for letter in text]
    whole = {text[i : i + size] for i, size in enumerate(sizes) if i + size <= len(text)}
    return whole or ({text} if text else set())


def true_jaccard(one: str, other: str) -> float:
    ours, theirs = shingles(one), shingles(other)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def edited(language: str, said: list[str], known: list[str], rng: random.Random) -> list[str]:
    """The sentence with one word replaced, left out or put in."""
    at, new = rng.randrange(len(said)), rng.choice(known)
    return [[*said[:at], new, *said[at + 1 :]], said[:at] + said[at + 1 :], [*said[:at], new, *said[at:]]][
        rng.randrange(3)
    ]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  Where is\tmy CARD? ", "where is my card"),
        ('"Hello,  World!"', "hello, world"),
        ("ＡＢＣ　デＦ", "abc デf"),
        ("カード は どこ？", "カード は どこ"),
        ("안녕하세요!!", "안녕하세요"),
        ("Straße der ÄPFEL", "strasse der äpfel"),
        ("CC(=O)Oc1ccccc1", "CC(=O)Oc1ccccc1"),
        ("?!", "?!"),
        ("... ...", "... ..."),
        ("", ""),
        ("   ", ""),
    ],
)
def test_normal_forms(text: str, form: str) -> None:
    assert twins.normal(text) == form


@given(st.text(max_size=40))
def test_a_normal_form_is_its_own(text: str) -> None:
    once = twins.normal(text)
    if " " in once or not once.isascii():
        assert twins.normal(once) == once
    assert "  " not in once and once == once.strip()


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=8))
def test_shingles_are_those_of_plain_python(texts: list[str]) -> None:
    found = twins.shingle(texts)
    assert found.sizes_N.tolist() == [len(shingles(text)) for text in texts]
    for row in range(len(texts)):
        own = found.values_S[found.starts_N1[row] : found.starts_N1[row + 1]]
        assert (np.diff(own.astype(np.int64)) > 0).all()


@given(st.lists(st.text("abc 日本", max_size=12), min_size=1, max_size=8))
def test_jaccard_is_that_of_plain_python(texts: list[str]) -> None:
    found, count = twins.shingle(texts), len(texts)
    ours, theirs = np.divmod(np.arange(count * count), count)
    expected = [true_jaccard(texts[i], texts[j]) for i, j in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(twins.jaccard(found, ours, found, theirs), expected)


def test_jaccard_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, known = random.Random(1), words("en", 40)
    found = twins.shingle([" ".join(sentence("en", known, rng)) for _ in range(30)])
    ours, theirs = np.divmod(np.arange(900), 30)
    whole = twins.jaccard(found, ours, found, theirs)
    monkeypatch.setattr(twins, "_BLOCK", 500)
    np.testing.assert_array_equal(twins.jaccard(found, ours, found, theirs), whole)


@pytest.mark.parametrize("language", ALPHABETS)
def test_near_twins_are_found_and_nothing_else(language: str) -> None:
    """Of all pairs with a true Jaccard of 0.8 at least 9 in 10; none below: by brute force over every pair."""
    rng, known = random.Random(2), words(language, 400)
    said = [sentence(language, known, rng) for _ in range(150)]
    said += [edited(language, one, known, rng) for one in said for _ in range(2)]
    texts = [spoken(language, one) for one in said]
    true = {j for j in range(len(texts)) if any(true_jaccard(texts[i], texts[j]) >= twins.NEAR for i in range(j))}
    rows = twins.compared(texts)
    partner = twins.partners(rows, rows, before=True)
    found = set(np.flatnonzero(partner >= 0).tolist())
    assert len(true) > 100 and found <= true and len(found) >= 0.98 * len(true)
    assert all(true_jaccard(texts[j], texts[partner[j]]) >= twins.NEAR and partner[j] < j for j in found)


def test_what_near_twins_must_have_in_common() -> None:
    said = "where can i see the balance of my account today"
    questions = [said, said + " please", said, "who won stage 16 of it", "who won stage 18 of it", "almiro", "almiron"]
    answers = ["balance", "balance", "other", "a", "a", "b", "b"]
    rows = twins.compared(questions, answers)
    assert twins.partners(rows, rows, before=True).tolist() == [-1, 0, -1, -1, -1, -1, -1]
    assert twins.fixed("12시에 만나", "") != twins.fixed("13시에 만나", "")
    assert twins.fixed("b2b and w17", "") == twins.fixed("b2c and w18", "")


def test_what_most_rows_share_does_not_make_them_twins() -> None:
    rng, known = random.Random(3), words("en", 400)
    instruction = "classify the customer's message into one of the classes below, and answer with its name alone: "
    tails = rng.sample(sorted(set(known)), 60)
    rows = twins.compared([instruction + tail for tail in tails], ["a"] * 60)
    assert (twins.partners(rows, rows, before=True) < 0).all()
    rows = twins.compared([instruction + tail for tail in tails[:5]], ["a"] * 5)
    assert (twins.partners(rows, rows, before=True) >= 0).any()  # five rows do not tell what is an instruction


def test_signatures_are_the_same_on_every_machine() -> None:
    rows = twins.compared(["the same question", "どこですか"], ["yes", "no"])
    found = [f"{key:016x}" for key in rows.keys_BN[:2].ravel()]
    assert found == ["8ff202c5e60e30ff", "22641c56432d3bbb", "775b36769b579852", "07d5124ed1da193c"]


def test_rows_of_which_nothing_is_left_are_nobodys_twins() -> None:
    rows = twins.compared(["", "", "?"], ["", "", ""])
    assert (twins.partners(rows, rows, before=True) < 0).all()
