"""The door is light: a program that imports luthier, or a person who asks for help, pays for nothing heavy."""

from __future__ import annotations

import ast
import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import luthier

HEAVY = ("torch", "transformers", "numpy", "pyarrow", "datasets")


@pytest.mark.parametrize("module", ["luthier", "luthier.cli.app", "luthier.studio", "luthier.engines", "luthier.spec"])
def test_importing_it_leaves_heavy_modules_out(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_help_opens_at_once() -> None:
    def seconds() -> float:
        """Processor time of one `luthier --help`: unlike the clock's, it does not grow when cores are shared."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "luthier", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.45  # bench/door.py tells the time on the clock: 0.3 s is the goal


def test_editors_and_type_checkers_are_told_the_same_names() -> None:
    stub = ast.parse(Path(luthier.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    told = {node.names[0].asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom)}
    assert set(told) | {"__version__"} == set(luthier.__all__)
    for name, module in told.items():
        assert vars(importlib.import_module(str(module)))[str(name)] is luthier.__getattr__(str(name))


def test_every_public_name_resolves_and_an_unknown_one_is_an_attribute_error() -> None:
    for name in luthier.__all__:
        assert vars(luthier).get(name) or luthier.__getattr__(name)
    with pytest.raises(AttributeError, match="no attribute 'retune'"):
        luthier.retune  # noqa: B018


def test_no_module_shadows_a_public_verb() -> None:
    for name in luthier.__all__:
        with pytest.raises(ImportError):
            importlib.import_module(f"luthier.{name}")
