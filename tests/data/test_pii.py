"""Personal data by rule: the valid is found, what only looks alike is not, nothing shown gives it away."""

from __future__ import annotations

import base64
import datetime
import json
import random
import string

import pytest

from luthier.data import pii
from luthier.errors import SpecError
from luthier.redaction import refuse

NEAR_MISSES = [
    "order 4111111111111112 was sent",  # fails Luhn
    "9111 1111 1111 1111",  # no issuer's range
    "account GB82 WEST 1234 5698 7654 31",  # fails mod 97
    "GB82WEST123456987654321",  # too long for its country
    "900101-1234567 and 901301-1234568",  # check digit; the 13th month
    "1234-5678-9010",  # My Number's check digit
    "123456789018",  # a My Number's check digit by chance, but nobody calls it so
    "1612151234567 ms, barcode 8801234567893",
    "version 10.15.7.2024 and 1.2.3-rc.4",
    "$1,234,567.89 or 12.345.678,90 €",
    "2023-10-15 12:30:45, 20231015123045, 15/10/2023-16/10/2023",
    "SELECT * FROM orders WHERE id = 4155552671 AND code IN (1234567890, 9876543210)",
    "ids 415-555-26711, 1-415-555-267, 111-555-2671, 415-155-2671",
    "score +8 (70-69-70-75=284), +1.25 +13.50 -12.25, 3 + 12345678",
    "ISBN 978-3-16-148410-0, isotope 010-12-3456",
    "01010101010 and 00000000000",
    "192.168.100.200:8080 and 255.255.255.255",
    "uuid 550e8400-e29b-41d4-a716-446655440000",
    "@ann, ann@localhost, icon@2x.png, react@18.2.0, git@github.com:org/project.git, f(x)@y",
    "sk-fading-circle-container-wrapper and task-list-of-everything-that-is-left",
    "AKIDEXAMPLE, ghp_short, xoxo-hugs, hf_token, AIzabella, eyJhbGciOi.notjson",
    "eyJmb29iYXI6MTIz.eyJmb29iYXI6MTIz.c2lnbmF0dXJl",  # no JSON in its header
    "https://example.org:8080/path and a:b",
    "-----BEGIN PUBLIC KEY-----",
]


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert pii.masked(text) == (text, {})


FORMS = [
    (
        "phone",
        "010-1234-5678 01012345678 010.1234.5678 011-234-5678 (02)123-4567 02-1234-5678 031-123-4567 070-1234-5678",
    ),
    ("phone", "090-1234-5678 09012345678 03-1234-5678 03(1234)5678 (03)1234-5678 045-123-4567 0467-12-3456"),
    ("phone", "415-555-2671 (415)555-2671 415.555.2671 1-415-555-2671"),
    (
        "phone",
        "+821012345678 +82-10-1234-5678 +81-90-1234-5678 +1-415-555-2671 +14155552671 +49-30-498830 +33-1-49-52-99-70",
    ),
    ("email", "ann@mail.org a.b+c_d%e@sub.domain.co.jp ANN@X.IO 1@2.museum"),
    (
        "card",
        "4111111111111111 4111-1111-1111-1111 378282246310005 3782-822463-10005 5555555555554444 2223003122003222",
    ),
    ("card", "6011111111111117 3530111333300000 30569309025904 6200000000000005"),
    ("iban", "DE89370400440532013000 NO9386011117947 MT84MALT011000012345MTLCAST001S FR1420041010050500013M02606"),
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FORMS for text in texts.split(" ")])
def test_every_written_form_is_found(kind: str, text: str) -> None:
    mask = f"<{kind.upper()}>"
    assert pii.masked(f"전화:{text}, or") == (f"전화:{mask}, or", {kind: 1})
    assert pii.masked(f"連絡は{text}です") == (f"連絡は{mask}です", {kind: 1})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("call (02) 123-4567 or +82 (0)10 1234 5678", "call <PHONE> or <PHONE>"),
        ("+44 20 7402 0281, +1 (415) 555-2671, 415 555 2671", "<PHONE>, <PHONE>, <PHONE>"),
        ("pay to GB82 WEST 1234 5698 7654 32 AND tell", "pay to <IBAN> AND tell"),
        ("ES91 2100 0418 4502 0005 1332 AND 5105 1051 0510 5100.", "<IBAN> AND <CARD>."),
        ("マイナンバーは123456789018です", "マイナンバーは<MY_NUMBER>です"),
        ("costs.916-442-6802 is theirs", "costs.<PHONE> is theirs"),
        ("https://ann:s3cret@db.intern/x", "https://<LOGIN>@db.intern/x"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\nabc\n-----END RSA PRIVATE KEY-----\nend",
            "<PRIVATE_KEY>\nend",
        ),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5v", "<PRIVATE_KEY>"),
    ],
)
def test_forms_in_their_context(text: str, masked: str) -> None:
    assert pii.masked(text)[0] == masked


def _key(draw: random.Random, length: int, signs: str = string.ascii_letters + string.digits) -> str:
    return "".join(draw.choice(signs) for _ in range(length - 3)) + "aZ7"


def _valid(draw: random.Random) -> dict[str, str]:
    """One generated valid specimen of every kind that has a check digit or a random part."""
    number = "4" + "".join(draw.choice(string.digits) for _ in range(14))
    card = next(number + digit for digit in string.digits if pii.luhn(number + digit))
    account = "".join(draw.choice(string.digits) for _ in range(18))
    iban = f"DE{98 - int(account + '131400') % 97:02d}{account}"
    born = datetime.date(1950, 1, 1) + datetime.timedelta(days=draw.randrange(25_000))
    sex = draw.choice("12" if born.year < 2000 else "34")
    resident = f"{born:%y%m%d}{sex}{draw.randrange(100_000):05d}"
    eleven = "".join(draw.choice(string.digits) for _ in range(11))
    mine = eleven + str(pii.my_number_check_digit(eleven))
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).decode().rstrip("=")
    return {
        "card": " ".join(card[i : i + 4] for i in range(0, 16, 4)),
        "iban": iban,
        "rrn": f"{resident[:6]}-{resident[6:]}{pii.rrn_check_digit(resident)}",
        "my_number": f"{mine[:4]}-{mine[4:8]}-{mine[8:]}",
        "token": f"{head}.eyJ{_key(draw, 20)}.{_key(draw, 43)}",
        "api_key": draw.choice(
            [
                f"sk-proj-{_key(draw, 48)}",
                f"AKIA{''.join(draw.choice('ABCDEFGHIJKLMNOPQRSTUVWXYZ234567') for _ in range(16))}",
                f"ghp_{_key(draw, 36)}",
                f"xoxb-{draw.randrange(10**11)}-{_key(draw, 24)}",
                f"AIza{_key(draw, 35)}",
                f"hf_{_key(draw, 34)}",
                f"glpat-{_key(draw, 20)}",
            ]
        ),
        "email": f"{_key(draw, 8).lower()}@{_key(draw, 6).lower()}.example",
        "phone": draw.choice(["010-{:04d}-{:04d}", "090-{:04d}-{:04d}", "+82 10 {:04d} {:04d}"]).format(
            draw.randrange(10_000), draw.randrange(10_000)
        ),
    }


def test_generated_valid_ones_are_all_found() -> None:
    draw = random.Random(0)
    for _ in range(400):
        for kind, text in _valid(draw).items():
            assert pii.masked(f"it is {text}, thanks") == (f"it is <{kind.upper()}>, thanks", {kind: 1}), (kind, text)


def test_one_changed_digit_is_no_longer_valid() -> None:
    """Luhn, mod 97 and the two national check digits catch every single wrong digit."""
    draw = random.Random(1)
    for _ in range(100):
        specimens = _valid(draw)
        for kind in ("card", "iban", "my_number"):
            text = specimens[kind]
            at = draw.choice([i for i, sign in enumerate(text) if sign.isdigit() and i > 3])
            wrong = text[:at] + str((int(text[at]) + draw.randrange(1, 9)) % 10) + text[at + 1 :]
            if kind == "my_number" and pii.my_number_check_digit(wrong.replace("-", "")[:11]) == int(wrong[-1]):
                continue  # remainders 0 and 1 share the digit 0
            assert kind not in pii.masked(wrong)[1], wrong


def test_new_korean_numbers_have_no_check_digit() -> None:
    wrong = (pii.rrn_check_digit("211005312345") + 1) % 10
    assert pii.masked(f"211005-312345{wrong}")[1] == {"rrn": 1}
    assert pii.masked(f"190805-312345{(pii.rrn_check_digit('190805312345') + 1) % 10}")[1] == {}
    assert pii.masked(f"900101-512345{pii.rrn_check_digit('900101512345')}")[1] == {"rrn": 1}  # a foreigner


def test_json_stays_json() -> None:
    call = {"a@b.org": 4111111111111111, "to": ["ann@mail.org", "+821012345678"], "n": 1.5}
    told, found = pii.masked(json.dumps(call, indent=1))
    assert json.loads(told) == {"a@b.org": 4111111111111111, "to": ["<EMAIL>", "<PHONE>"], "n": 1.5}
    assert found == {"email": 1, "phone": 1}
    assert pii.masked("{not json ann@mail.org}")[0] == "{not json <EMAIL>}"


def test_what_is_shown_has_the_form_and_not_the_data() -> None:
    assert pii.shaped("Ann: ann.b@mail.org, 4111-1111-1111-1111") == "Ann: xxx.x@xxxx.xxx, 0000-0000-0000-0000"
    draw = random.Random(2)
    for kind, text in _valid(draw).items():
        shown = pii.shaped(f"it is {text}")
        assert len(shown) == len(text) + 6 and not set(shown[6:]) & set("123456789"), kind


def test_masked_text_holds_nothing_more() -> None:
    draw = random.Random(3)
    text = " / ".join(_valid(draw).values())
    masked = pii.masked(text)[0]
    assert pii.masked(masked) == (masked, {})


def test_every_rule_is_reached_and_described() -> None:
    draw = random.Random(4)
    kinds = {*_valid(draw), *(kind for kind, _ in FORMS), "private_key", "login"}
    assert {rule.kind for rule in pii.RULES} == kinds
    assert all(rule.source and rule.name and rule.mask == f"<{rule.kind.upper()}>" for rule in pii.RULES)
    assert len({(rule.kind, rule.name) for rule in pii.RULES}) == len(pii.RULES)


@pytest.mark.parametrize(
    "secret", ["sk-" + "aB3" * 10, "ghp_" + "aB3" * 12, "AKIA" + "ABCD2345" * 2, "hf_" + "aB3" * 11]
)
def test_what_is_refused_in_an_experiment_is_masked_in_data(secret: str) -> None:
    with pytest.raises(SpecError):
        refuse(f"key: {secret}", "experiment.yaml")
    assert pii.masked(f"key: {secret}") == ("key: <API_KEY>", {"api_key": 1})


@pytest.mark.parametrize(
    "text",
    ["1" * 50_000, "1 " * 30_000, "a@" * 30_000, "a." * 30_000 + "@", "+1" * 30_000, "eyJ" * 20_000, "sk-" * 20_000],
)
def test_long_texts_of_one_pattern_end(text: str) -> None:
    """No rule needs more than linear time (the test's own time limit is the judge)."""
    assert pii.masked(text)[1] == {}
