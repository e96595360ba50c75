"""Text that is not UTF-8: the guess names it also where it is short, `data.encoding` reads it, a wrong one is refused."""
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.data import sources
from luthier.data.encodings import guess_encodings
from luthier.errors import DataError
from tests.cli.conftest import Luthier
from tests.cli.conftest import luthier as luthier  # the fixture
from tests.data.bad_files import FRENCH, JAPANESE, KOREAN, ROWS, jsonl, table

SHORT = {
    "cp949": "교환 문의합니다|맛있다|별로|추천해요|포장이 찢어졌어요|전화 주세요|회원 탈퇴|중립|스포츠|경제|사랑해요|오늘 날씨"
    "|쿠폰이 안 보여요|반품 절차|환율|글자가 깨져요|빨리 보내 주세요|기대 이하|만족|불량",
    "cp932": "交換したい|おいしい|普通|おすすめです|箱が破れていた|電話ください|退会|中立|スポーツ|経済|今日の天気|クーポンが見えない"
    "|返品の手順|為替|文字化け|早く送って|期待外れ|満足|不良品|エラー",
    "euc-jp": "交換したい|おいしい|おすすめです|箱が破れていた|電話ください|スポーツ|今日の天気|文字化けしました|早く送って|エラー",
    "cp1252": "garçon|señorita|Mädchen|français|Müller|Größe|voilà|corazón|información|è vero|à bientôt|Åse|naïf|fenêtre"
    "|preço|mañana|Zürich|“quoted”|£5|Ünal",
    "cp1251": "погода|спорт|деньги|плохо|Москва|хороший товар|не работает|верните",
    "cp1253": "η παραγγελία|ευχαριστώ|δεν έφτασε|θέλω τα χρήματά μου|καλό|ο καιρός σήμερα",
    "gb18030": "换货|很好吃|一般|推荐大家买|今天的天气怎么样|优惠券看不到|请给我打电话|不满意",
}
RIGHT = {"cp949": 0.95, "cp932": 0.95, "euc-jp": 0.8, "cp1252": 0.95, "cp1251": 0.85, "cp1253": 0.8, "gb18030": 0.85}
"""Shares of the words above whose encoding must be the first guess; the words were not used to make the guess."""


@pytest.mark.parametrize("codec", SHORT)
def test_a_word_or_two_are_enough(codec: str) -> None:
    wrong = {}
    for words in SHORT[codec].split("|"):
        found = guess_encodings(f'{{"text": "{words}", "label": "a"}}\n'.encode(codec))
        if not found or found[0].codec != codec:
            wrong[words] = found
    assert 1 - len(wrong) / len(SHORT[codec].split("|")) >= RIGHT[codec], wrong


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("rows", [ROWS, KOREAN, JAPANESE])
def test_utf_16_without_a_mark_is_known_by_its_zeros(codec: str, rows: list[dict[str, str]]) -> None:
    assert [guess.codec for guess in guess_encodings(jsonl(rows).encode(codec))] == [codec]


def test_what_is_no_text_is_not_guessed() -> None:
    assert guess_encodings(bytes(range(256)) * 8) == ()
    assert guess_encodings(b"{}\x00\x00\x00{}") == ()


def test_longer_text_of_other_encodings_is_left_to_statistics() -> None:
    arabic = "لم يصل الطلب بعد وأريد استرداد أموالي. شكرا جزيلا لكم على المساعدة." * 3
    found = guess_encodings(arabic.encode("cp1256"))
    assert found and arabic.encode("cp1256").decode(found[0].codec) == arabic


def _experiment(folder: Path, file: str, encoding: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(f"model: org/base\ndata:\n  train: {file}\n  encoding: {encoding}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("cp949", KOREAN), ("EUC-KR", KOREAN), ("Shift-JIS", JAPANESE), ("cp932", JAPANESE), ("latin-1", FRENCH),
        ("cp1252", FRENCH), ("utf-16", KOREAN), ("utf-16-le", ROWS), ("utf-16-be", JAPANESE), ("utf-8", KOREAN),
        ("utf-8-sig", FRENCH), ("utf-32", KOREAN), ("iso-2022-jp", JAPANESE),
    ],
)  # fmt: skip
def test_the_key_reads_what_it_names(luthier: Luthier, tmp_path: Path, encoding: str, rows: list) -> None:
    """The data set is the one that the same rows give as UTF-8, down to its fingerprint."""
    for name, text in (("x.jsonl", jsonl(rows)), ("x.csv", table(rows=rows)), ("x.json", f"[{jsonl(rows, ',')[:-1]}]")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        (tmp_path / "plain.jsonl").write_bytes(jsonl(rows).encode())
        said = luthier("prepare", _experiment(tmp_path, name, encoding))
        assert said.code == 0, said.err
        assert Path(said.out.strip()).name == Path(luthier("prepare", "plain.jsonl").out.strip()).name


def test_an_unknown_encoding_is_refused_with_its_line(luthier: Luthier, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(jsonl(ROWS))
    said = luthier("prepare", _experiment(tmp_path, "x.jsonl", "shift_jsi"))
    assert said.code == 2 and "experiment.yaml:4" in said.err and "did you mean `shift_jis`?" in said.err
    for no_text in ("base64", "rot13", "zip", "mbcs", "klingon"):
        said = luthier("prepare", _experiment(tmp_path, "x.jsonl", no_text))
        assert said.code == 2 and f"is no encoding: `{no_text}`" in said.err


WRONG = {
    "Korean as Japanese": ("cp949", KOREAN, "euc-jp", "x.jsonl:1", "the file looks like CP949, not euc-jp"),
    "Japanese as Korean": ("cp932", [*ROWS, {"input": "カード紛失 ｱ", "output": "ﾃｽﾄ"}], "cp949", "x.jsonl:13", "not cp949, at byte"),
    "Korean as latin-1, which takes every byte": ("cp949", KOREAN, "latin-1", "x.jsonl:1", "looks like CP949, not latin-1"),
    "Japanese as cp1252, which lacks five bytes": ("cp932", [{"input": "、", "output": "x"}], "cp1252", "x.jsonl:1", "not cp1252, at byte 11"),
    "French as Korean": ("cp1252", FRENCH, "cp949", "x.jsonl:1", "not cp949, at byte"),
    "UTF-8 as Korean": ("utf-8", KOREAN, "cp949", "x.jsonl:1", "not cp949, at byte"),
    "UTF-8 as latin-1, which takes every byte": ("utf-8", FRENCH, "latin-1", "x.jsonl:1", "the file is UTF-8, not latin-1"),
    "UTF-8 as cp1252": ("utf-8", [*ROWS, {"input": "à", "output": "é"}], "cp1252", "x.jsonl:1", "the file is UTF-8, not cp1252"),
    "UTF-8 as UTF-16": ("utf-8", ROWS, "utf-16-le", "x.jsonl:1", "not JSON"),
    "UTF-16 the other way round": ("utf-16-be", KOREAN, "utf-16", "x.jsonl:1", "its bytes stand the other way round"),
    "UTF-16 against its mark": ("utf-16", KOREAN, "utf-16-be", "x.jsonl:1", "its byte order mark says otherwise"),
    "UTF-16 as latin-1": ("utf-16-le", ROWS, "latin-1", "x.jsonl:1", "NUL bytes in the text"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_encoding_is_refused_not_garbled(luthier: Luthier, tmp_path: Path, case: str) -> None:
    truth, rows, claimed, place, words = WRONG[case]
    (tmp_path / "x.jsonl").write_bytes(jsonl(rows).encode(truth))
    said = luthier("prepare", _experiment(tmp_path, "x.jsonl", claimed))
    assert said.code == 2 and words in said.err and place in said.err, said.err


def test_the_place_is_exact_far_into_the_file(tmp_path: Path) -> None:
    """Line and byte are those of the bad character, in whichever piece of the file it stands."""
    good = jsonl(ROWS * 4000).encode()
    path = tmp_path / "x.jsonl"
    path.write_bytes(good + b'{"input": "\xff"}\n' + good)
    with pytest.raises(DataError, match=f"at byte {len(good) + 11:,}") as caught:
        list(sources.rows(path))
    assert caught.value.where == f"{path}:48001"


def test_plain_text_is_plain_text_in_every_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl(ROWS).encode())
    assert [row for row, _, _ in sources.rows(path, "cp949")] == ROWS
