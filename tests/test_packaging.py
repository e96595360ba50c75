"""What is shipped: declared dependencies, licence, size, and an archive that holds what a run needs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST_WHEEL = 12 * 1024 * 1024


def names(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[\[<>=~!; ]", each, maxsplit=1)[0]) for each in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[._]", "-", name.lower())


def imported() -> dict[str, Path]:
    """Every foreign top-level module imported anywhere in the package, with a file that does so."""
    found: dict[str, Path] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            found |= {module.split(".")[0]: path for module in modules}
    known = {*sys.stdlib_module_names, "luthier"}
    return {module: path for module, path in found.items() if module not in known}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    owners = importlib.metadata.packages_distributions()
    used = {canonical(owner) for module in imported() for owner in owners.get(module, [module])}  # Ray may be absent
    needed = names(PROJECT["dependencies"])
    extras = ("quant", "hub", "schema", "judge", "ray")
    optional = names([each for extra in extras for each in PROJECT["optional-dependencies"][extra]])
    # Used through transformers, with floors of ours; what pydantic pins to its own version; what jsonschema is made of.
    carried = {"accelerate", "huggingface-hub", "jinja2", "tokenizers", "pydantic-core"}
    carried |= {"jsonschema-specifications", "referencing"}
    assert used - carried <= needed | optional
    assert needed - carried <= used


def test_every_dependency_is_pinned_for_our_own_builds() -> None:
    pinned = names((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    extras = PROJECT["optional-dependencies"].values()
    assert names(PROJECT["dependencies"]) | names([each for extra in extras for each in extra]) - {"luthier"} <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_the_metadata_tell_licence_and_versions() -> None:
    assert PROJECT["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    for minor in (11, 12, 13, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]


@pytest.mark.slow
def test_the_wheel_is_small_and_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= LARGEST_WHEEL
    held = set(zipfile.ZipFile(wheel).namelist())
    ours = {path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(ROOT / "src")) for path in ours} <= held
    for file in ("py.typed", "demo/base/model.safetensors", "demo/base/tokenizer.json", "evaluation/report.html.j2"):
        assert f"luthier/{file}" in held
