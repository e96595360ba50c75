"""The guide of the gate names every finding as the gate does."""

from __future__ import annotations

from pathlib import Path

from luthier.data import gate
from luthier.data.sandbox import CPU_SECONDS, MEMORY_BYTES

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "gate.md"


def _table() -> list[str]:
    rows = []
    for code, check in gate.CHECKS.items():
        only = {"encoder": "", "causal": " (decoders)"}.get(check.families.split()[-1], " (not encoders)")
        rows.append(f"| {code} | {check.severity} | {check.says}{only} | {check.hint} |")
    return rows


def test_the_guide_lists_every_finding() -> None:
    """To write the table anew: print it from here."""
    text = GUIDE.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| G")] == _table()
    assert gate.UNBENDING == ("G02", "G06") and "G02 and G06 cannot be accepted" in text
    assert f"{CPU_SECONDS:g} s of processor time" in text and f"{MEMORY_BYTES >> 20} MB of memory" in text
    assert f"names the first {['four', 'five', 'six'][gate.SHOWN - 4]}" in text
