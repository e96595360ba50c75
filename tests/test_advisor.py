"""Bases that are suggested: they fit task, memory, language and device."""

from __future__ import annotations

import pytest

from luthier.advisor import suggest


@pytest.mark.parametrize(
    ("task", "family"),
    [
        ("classification", "encoder"),
        ("translation", "seq2seq"),
        ("summarization", "seq2seq"),
        ("generation", "causal"),
        ("chat", "causal"),
    ],
)
def test_the_closest_family_comes_first(task, family):
    found = suggest(task, 24 << 30)
    assert found[0].family == family and all(one.why and one.parameters > 0 for one in found)
    assert len({one.name for one in found}) == len(found)


def test_suggestions_fit_the_memory():
    for gib in (2, 4, 8, 16, 24, 80):
        for one in suggest("chat", gib << 30):
            assert one.parameters * 0.6 < gib << 30
            only_quantized = one.parameters * 2.5 + 2**29 > gib << 30
            assert ("QLoRA fits" in one.why) == only_quantized
    assert max(one.parameters for one in suggest("generation", 80 << 30)) > max(
        one.parameters for one in suggest("generation", 4 << 30)
    )
    assert suggest("chat", 1 << 28) == []


def test_suggestions_speak_the_language_and_know_the_device():
    assert {one.name for one in suggest("classification", 8 << 30, "ko") if one.family == "encoder"} == {
        "FacebookAI/xlm-roberta-base",
        "FacebookAI/xlm-roberta-large",
    }
    assert any("granite" in one.name for one in suggest("generation", 24 << 30, "ja"))
    assert all(one.parameters < 10**9 for one in suggest("generation", 64 << 30, device="cpu"))
    assert not any("ase" in one.name.lower() for one in suggest("chat", 80 << 30))


def test_a_base_with_a_preset_says_so():
    found = {one.name: one.why for one in suggest("generation", 80 << 30)}
    assert found["ibm-granite/granite-3.1-8b-base"].endswith("has a preset")
