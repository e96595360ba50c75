"""Every remark of the survey: a data set that draws it, and one just short of it that does not."""

from __future__ import annotations

import doctest
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.data import census, languages, lengths, survey
from luthier.data.lengths import Lengths, suggested_length
from luthier.data.prepare import prepare
from luthier.data.survey import Remark
from luthier.spec import Data
from tests import rows


def _nonsense(number: int, words: int = 6) -> str:
    """A text like no other and in no language."""
    draw = random.Random(number)
    return " ".join(
        "".join(draw.choice("bdfgklmprstvz") + draw.choice("aeiou") for _ in range(3)) for _ in range(words)
    )


_numbers = iter(range(10**9))


def _labelled(**counts: int) -> list[dict[str, Any]]:
    labels = [name for name, count in counts.items() for _ in range(count)]
    return [{"text": _nonsense(next(_numbers)), "label": label} for label in labels]


def _pairs(count: int, words: int = 6) -> list[dict[str, Any]]:
    draws = [next(_numbers) for _ in range(count)]
    return [{"input": _nonsense(draw, words), "output": _nonsense(draw + 10**7, 2)} for draw in draws]


def _said(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs that ask these texts, each in its own words."""
    return [row | {"input": f"{text} {row['input']}"} for text, row in zip(texts, _pairs(len(texts), 2), strict=True)]


def _remarks(home: Path, train: Any, validation: Any = 0.0, test: Any = 0.0, **wishes: Any) -> dict[str, Remark]:
    data = Data(train=train, validation=validation, test=test, **wishes)
    found = survey.survey(prepare(data, home), data)
    assert all(remark.message and remark.hint for remark in found)
    return {remark.code: remark for remark in found}


def _splits(home: Path, table: list[dict[str, Any]], name: str) -> str:
    return str(rows.write(home / f"{name}.jsonl", table))


# --- classes


def test_d01_one_class_outweighs(tmp_path: Path) -> None:
    remark = _remarks(tmp_path, _labelled(card=200, lost=20))["D01"]
    assert "`card` has 200 of 220 training rows, `lost` 20: always saying so is 91% right" in remark.message
    assert "macro_f1" in remark.hint
    assert "D01" in _remarks(tmp_path, _labelled(card=80, lost=20))  # 80 % of all
    assert "D01" not in _remarks(tmp_path, _labelled(card=79, lost=21))
    assert "D01" in _remarks(tmp_path, _labelled(card=100, fee=100, lost=10))  # ten times another
    assert "D01" not in _remarks(tmp_path, _labelled(card=99, fee=100, lost=11))


def test_d02_a_class_is_rare(tmp_path: Path) -> None:
    path = _splits(tmp_path, _labelled(card=30, lost=30, fee=9), "train")
    remark = _remarks(tmp_path, path)["D02"]
    assert remark.message == "1 class has fewer than 10 training rows: `fee` (9)"
    assert remark.rows == (f"{path}:61", f"{path}:62", f"{path}:63")
    assert "D02" not in _remarks(tmp_path, _labelled(card=30, lost=30, fee=10))


@pytest.mark.parametrize(
    ("rare", "often", "counts"),
    [
        ("Billing", "billing", (20, 20)),  # alike but for the case, however frequent
        ("card_lost", "card lost", (20, 30)),
        ("biling", "billing", (2, 20)),
        ("billling", "billing", (2, 20)),
        ("bililng", "billing", (2, 20)),
        ("pilling", "billing", (2, 20)),
    ],
)
def test_d03_a_name_is_spelled_twice(tmp_path: Path, rare: str, often: str, counts: tuple[int, int]) -> None:
    path = _splits(tmp_path, _labelled(**{often: counts[1], "refund": 20, rare: counts[0]}), "train")
    remark = _remarks(tmp_path, path)["D03"]
    assert f"`{rare}` ({counts[0]}) and `{often}` ({counts[1]})" in remark.message
    assert remark.rows[0] == f"{path}:{counts[1] + 21}" and f"{{{rare}: {often}, " in remark.hint
    joined = {rare: often, often: often, "refund": "refund"}
    assert "D03" not in _remarks(tmp_path, path, labels=joined)  # what the hint says heals it


@pytest.mark.parametrize(
    ("rare", "often", "counts"),
    [
        ("biling", "billing", (3, 20)),  # not rare enough to be a slip
        ("bilin", "billing", (2, 20)),  # two edits
        ("level 2", "level 1", (2, 20)),  # a digit is meant
        ("no", "on", (2, 20)),  # too short to tell
    ],
)
def test_d03_names_that_are_two(tmp_path: Path, rare: str, often: str, counts: tuple[int, int]) -> None:
    assert "D03" not in _remarks(tmp_path, _labelled(**{often: counts[1], "refund": 20, rare: counts[0]}))


def test_d04_and_d05_classes_of_one_side(tmp_path: Path) -> None:
    test = _splits(tmp_path, _labelled(card=60, gone=2, lost=60), "test")
    wishes = {"labels": ["card", "fee", "gone", "lost"]}
    train = _splits(tmp_path, _labelled(card=30, lost=30, fee=20), "train")
    found = _remarks(tmp_path, train, test=test, **wishes)
    assert found["D04"].message == "1 class of test that no training row has: `gone`"
    assert found["D04"].rows == (f"{test}:61", f"{test}:62")
    assert found["D05"].message == "1 class that no test row has: `fee`" and found["D05"].rows[0] == f"{train}:61"
    whole = _splits(tmp_path, _labelled(card=30, lost=30, gone=20), "whole")
    assert not {"D04", "D05"} & set(_remarks(tmp_path, whole, test=test))
    assert "D05" not in _remarks(tmp_path, whole)  # no test, nothing to miss
    validation = _splits(tmp_path, _labelled(card=9, fee=2), "validation")
    assert "of validation that" in _remarks(tmp_path, whole, validation, **wishes)["D04"].message


# --- lengths


def test_d06_a_row_is_very_long(tmp_path: Path) -> None:
    table = [*_pairs(100), *_pairs(1, 60)]
    path = _splits(tmp_path, table, "train")
    remark = _remarks(tmp_path, path)["D06"]
    assert remark.rows == (f"{path}:101",) and remark.message.startswith("1 row of train with ")
    assert "D06" not in _remarks(tmp_path, [*_pairs(100), *_pairs(1, 48)])  # under eight medians
    spread = [row for words in range(2, 40, 2) for row in _pairs(5, words)]
    assert "D06" not in _remarks(tmp_path, [*spread, *_pairs(1, 160)])  # long among long ones
    test = _splits(tmp_path, _pairs(2, 70), "test")
    assert set(_remarks(tmp_path, _pairs(100), test=test)["D06"].rows) == {f"{test}:1", f"{test}:2"}


def test_d09_rows_are_longer_than_in_training(tmp_path: Path) -> None:
    train, longest = _pairs(100), max(_pairs(40), key=lambda row: len(row["input"]))
    train = [*train, longest]
    reach = max(len(row["input"] + row["output"]) for row in train)
    same = {"input": "z" * (reach - 4), "output": "zeta"}
    longer = {"input": "y" * (reach - 3), "output": "zeta"}
    path = _splits(tmp_path, [longer, same], "validation")
    remark = _remarks(tmp_path, train, path)["D09"]
    assert remark.rows == (f"{path}:1",)
    assert remark.message == f"1 row of validation longer than every training row ({reach:,} characters)"
    assert "D09" not in _remarks(tmp_path, train, test=[same])


# --- languages

KOREAN, JAPANESE = "카드가 아직 도착하지 않았어요", "カードがまだ届いていません"
ENGLISH = "when will the card that I ordered arrive"


def test_d07_languages_are_mixed(tmp_path: Path) -> None:
    path = _splits(tmp_path, _said([KOREAN] * 297 + [ENGLISH] * 3), "train")
    remark = _remarks(tmp_path, path)["D07"]
    assert remark.message == "questions are in 2 languages: Korean 99.0%, English 1.0% (of 300 that could be told)"
    assert remark.rows == (f"{path}:298", f"{path}:299", f"{path}:300")
    assert "D07" not in _remarks(tmp_path, _said([KOREAN] * 298 + [ENGLISH] * 2))
    assert "D07" not in _remarks(tmp_path, _said([KOREAN] * 400 + [ENGLISH] * 3))  # below one in a hundred
    answered = [row | {"output": f"{JAPANESE} {i}"} for i, row in enumerate(_said([KOREAN] * 50))]
    assert "D07" not in _remarks(tmp_path, answered)  # a translation: one language on either side
    answered[7:10] = [row | {"output": row["input"]} for row in answered[7:10]]
    assert "answers are in 2 languages: Japanese 94.0%, Korean 6.0%" in _remarks(tmp_path, answered)["D07"].message


def test_d08_languages_differ_between_splits(tmp_path: Path) -> None:
    train = _said([KOREAN] * 360 + [ENGLISH] * 40)
    test = _splits(tmp_path, _said([KOREAN] * 160 + [ENGLISH] * 40), "test")
    remark = _remarks(tmp_path, train, test=test)["D08"]
    assert "the questions of test" in remark.message and "English 20% against 10% in train" in remark.message
    assert remark.rows == (f"{test}:161", f"{test}:162", f"{test}:163")
    assert "D08" not in _remarks(tmp_path, train, test=_said([KOREAN] * 162 + [ENGLISH] * 38))  # nine points
    assert "D08" not in _remarks(tmp_path, train, test=_said([KOREAN] * 16 + [ENGLISH] * 4))  # may be luck


def test_languages_are_not_judged_by_the_few_that_can_be_told(tmp_path: Path) -> None:
    train, test = _said([KOREAN] * 40 + [ENGLISH] * 10), _said([ENGLISH] * 50)
    assert {"D07", "D08"} <= set(_remarks(tmp_path, train, test=test))
    names = _pairs(60)
    assert not {"D07", "D08"} & set(_remarks(tmp_path, [*train, *names], test=[*test, *_pairs(60)]))


def test_what_cannot_be_told_has_no_language() -> None:
    for module in (languages, lengths, survey):
        assert doctest.testmod(module).failed == 0
    for text in ("CC(=O)Oc1ccccc1C(=O)O", "42", "東京都", "", _nonsense(1), "der the"):
        assert languages.language(text) is None
    told = {"Où est la carte que vous avez ?": "French", "Wo ist die Karte, und wer hat sie?": "German"}
    told |= {
        "Где моя карта?": "Cyrillic",
        "我的卡还没有到请帮我查一下": "Chinese",
        "SQL을 알려 주세요 SELECT": "Korean",
    }
    assert {text: languages.language(text) for text in told} == told


# --- how many


def test_d10_an_epoch_has_few_steps(tmp_path: Path) -> None:
    remark = _remarks(tmp_path, _pairs(152))["D10"]
    assert remark.message == "152 training rows at batch size 8 are 19 steps an epoch"
    assert "`training.batch_size: 4`" in remark.hint
    assert "D10" not in _remarks(tmp_path, _pairs(153))
    assert survey.few_steps(1000, 8, 4) is None and survey.few_steps(0) is None
    with_more = survey.few_steps(600, 8, 4)
    assert (
        with_more and "batch size 8 × 4 are 19 steps" in with_more.message and "accumulate_steps: 1" in with_more.hint
    )


def test_d11_rows_are_few_and_the_way_to_find_out_is_named(tmp_path: Path) -> None:
    remark = _remarks(tmp_path, _pairs(99))["D11"]
    assert "99 rows to train on" in remark.message and "100 to 1,000" in remark.message
    assert "--set data.limit=25" in remark.hint and "--set data.limit=50" in remark.hint
    assert "D11" not in _remarks(tmp_path, _pairs(100))


def test_d12_a_test_is_small(tmp_path: Path) -> None:
    test = _pairs(99)
    assert "±10 points" in _remarks(tmp_path, _pairs(120), test=test)["D12"].message
    assert "D12" not in _remarks(tmp_path, _pairs(120), test=[*test, *_pairs(1)])
    assert "D12" not in _remarks(tmp_path, _pairs(120))


# --- the whole


def test_remarks_stand_in_the_data_set_and_every_code_is_explained(tmp_path: Path) -> None:
    table = _labelled(card=60, lost=4)
    dataset = prepare(Data(train=table), tmp_path)
    codes = [remark["code"] for remark in dataset.summary["remarks"]]
    assert codes == sorted(codes) and {"D01", "D02", "D10", "D11", "D12"} <= set(codes)
    assert prepare(Data(train=table), tmp_path).summary == dataset.summary
    guide = Path(__file__).parents[2] / "docs" / "guides" / "prepare.md"
    assert all(
        line in guide.read_text(encoding="utf-8") for line in (survey.__doc__ or "").splitlines() if "| D" in line
    )
    text = (survey.__doc__ or "") + Path(survey.__file__).read_text()
    assert all(text.count(f'"D{n:02}"') == 1 and f"| D{n:02} |" in text for n in range(1, 13))


@pytest.mark.parametrize("kind", ["messages", "text", "prompt"])
def test_every_kind_of_row_is_counted(tmp_path: Path, kind: str) -> None:
    asked = f"{KOREAN} "
    made = {
        "messages": lambda i: {
            "messages": [
                {"role": "system", "content": ENGLISH},
                {"role": "user", "content": asked + _nonsense(i)},
                {"role": "assistant", "content": _nonsense(i, 1)},
            ]
        },
        "text": lambda i: {"text": asked + _nonsense(i)},
        "prompt": lambda i: {"prompt": asked + _nonsense(i), "completion": _nonsense(i, 1)},
    }[kind]
    dataset = prepare(Data(train=[made(i) for i in range(40)], validation=0.0, test=0.0), tmp_path)
    counted = census.count(dataset)["train"]
    said = len(asked + _nonsense(0)) + (len(ENGLISH) if kind == "messages" else 0)
    assert counted.rows == 40 and counted.lengths["question"].quantile(0.5) == said
    assert counted.lengths["answer"].longest == (0 if kind == "text" else 6)
    assert counted.languages["question"] == {"Korean": 40}


def test_lengths_are_counted_without_keeping_them() -> None:
    draw = random.Random(0)
    values = [int(draw.lognormvariate(5, 2)) for _ in range(5000)]
    counted = Lengths()
    for value in values:
        counted.add(value)
    values.sort()
    for share in (0.01, 0.25, 0.5, 0.75, 0.99, 1.0):
        true = values[max(0, round(share * 5000) - 1)]
        assert true <= counted.quantile(share) <= true * (1 + 1 / 128)
    assert (counted.rows, counted.total, counted.longest) == (5000, sum(values), values[-1])
    assert counted.between(100, 200) == sum(100 <= value < 200 for value in values)
    assert Lengths().quantile(0.5) == 0


def test_a_census_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        dataset = prepare(Data(train=_pairs(count), validation=0.0, test=0.0), tmp_path)
        tracemalloc.start()
        census.count(dataset)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(50)
    assert peak(3000) < peak(300) + 50_000


# --- max_seq_length


def test_a_suggested_length_says_what_each_costs() -> None:
    plain = suggested_length([100] * 50 + [300] * 50)
    assert (plain.suggested, plain.longest, plain.p99) == (320, 300, 300)
    assert plain.sentence == "`training.max_seq_length: 320` holds every row (the longest has 300 tokens)"
    costs = {choice.limit: choice for choice in plain.choices}
    assert costs[256].longer == 50 and costs[256].saved_by_cut == pytest.approx(50 * 44 / 20_000)
    assert costs[256].saved_by_drop == pytest.approx(15_000 / 20_000)
    assert costs[320].longer == 0 and set(costs) == {256, 320}
    tail = suggested_length([100] * 995 + [5000] * 5)
    assert tail.suggested == 128 and {128, 256, 512, 1024, 2048, 4096} < {choice.limit for choice in tail.choices}
    assert "leaves out 5 of 1,000 rows" in tail.sentence and "20% of the tokens" in tail.sentence
    assert suggested_length([100] * 995 + [1000] * 5).suggested == 1024  # the last rows hold too little to cut
    assert suggested_length([100, 3000], positions=2048).suggested == 2048  # no further than the base reads
    with pytest.raises(ValueError):
        suggested_length([])
