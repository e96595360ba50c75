"""Plugins: built in, from an installed package (a real one, on a path of the test's own), by dotted path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from luthier import plugins
from luthier.errors import SpecError


def shout(text: str) -> str:
    return text.upper()


BUILT_IN = {"shout": shout, "basename": "os.path:basename"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """package("acme", {"entry": "module:function"}, source) installs a package that offers metrics."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, offers: dict[str, str], source: str = "") -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "\n".join(f"{entry} = {target}" for entry, target in offers.items())
        (info / "entry_points.txt").write_text(f"[luthier.metric]\n{lines}\n")

    yield install
    for name in ("acme", "other"):
        sys.modules.pop(name, None)


def test_built_in():
    assert plugins.find("metric", "shout", BUILT_IN)("a") == "A"
    assert plugins.find("metric", "basename", BUILT_IN)("a/b") == "b"


def test_an_installed_package_s(package):
    package("acme", {"half": "acme:half"}, "def half(x):\n    return x / 2\n")
    assert plugins.find("metric", "half", BUILT_IN)(4) == 2
    assert plugins.names("metric", BUILT_IN) == ["shout", "basename", "half"]
    assert plugins.names("format", {}) == []


def test_a_built_in_name_cannot_be_taken_over(package):
    package("acme", {"shout": "acme:whisper"}, "def whisper(x):\n    return x.lower()\n")
    assert plugins.find("metric", "shout", BUILT_IN)("a") == "A"
    assert plugins.names("metric", BUILT_IN) == ["shout", "basename"]


def test_two_packages_with_one_name_are_refused(package):
    package("acme", {"half": "acme:half"})
    package("other", {"half": "other:half"})
    with pytest.raises(SpecError, match="several packages offer a metric `half`: acme, other"):
        plugins.find("metric", "half", BUILT_IN)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no licence')\n", "RuntimeError: no licence"),
        ("import not_installed_anywhere\n", "ModuleNotFoundError"),
        ("", "AttributeError"),
        ("half = 3\n", "is not a function"),
    ],
)
def test_a_broken_package_is_named(package, source, message):
    package("acme", {"half": "acme:half"}, source)
    with pytest.raises(SpecError, match=message) as caught:
        plugins.find("metric", "half", BUILT_IN)
    assert "metric `half` of the package acme" in caught.value.message


def test_unknown_names_get_a_hint(package):
    package("acme", {"half": "acme:half"})
    with pytest.raises(SpecError) as caught:
        plugins.find("metric", "haft", BUILT_IN)
    assert (caught.value.message, caught.value.hint) == ("there is no metric `haft`", "did you mean `half`?")
    with pytest.raises(SpecError) as caught:
        plugins.find("metric", "zzz", BUILT_IN)
    assert caught.value.hint == "known: shout, basename, half"


def test_dotted_paths_only_where_allowed():
    with pytest.raises(SpecError, match="not allowed here"):
        plugins.find("metric", "os.path:basename", BUILT_IN)
    assert plugins.find("metric", "os.path:basename", BUILT_IN, dotted_paths=True)("a/b") == "b"
    with pytest.raises(SpecError, match="cannot be loaded: ModuleNotFoundError"):
        plugins.find("metric", "no.such:thing", BUILT_IN, dotted_paths=True)


METRICS = """
from luthier.evaluation.metrics import Metric, METRICS

def starts_alike(answer, reference, columns) -> bool:
    return answer[:1] == reference[:1]

whole = Metric("acme_bleu", "Acme's BLEU", "whole", METRICS["bleu"].row, METRICS["bleu"].whole, top=100.0)
"""


def test_a_metric_of_an_installed_package_is_one_by_its_name(package):
    from luthier.evaluation.metrics import METRICS as TABLE
    from luthier.evaluation.metrics import Prediction, by_name, measure

    package("acme", {"first_letter": "acme:starts_alike", "acme_bleu": "acme:whole"}, METRICS)
    rows = [Prediction("1", "rows.jsonl:1", "", ("a cat sat here",), said) for said in ("a cat sat there", "no")]
    letter, whole = by_name(["first_letter", "acme_bleu"])
    assert (letter.name, letter.kind, measure(letter, rows).score.value) == ("first_letter", "share", 0.5)
    assert measure(whole, rows).score == measure(TABLE["bleu"], rows).score


def test_what_is_neither_function_nor_metric_is_refused(package):
    from luthier.evaluation.metrics import by_name

    package("acme", {"half": "acme:half"}, "half = 3\n")
    with pytest.raises(SpecError, match="is not a function"):
        by_name(["half"])
