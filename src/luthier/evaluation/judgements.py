"""What a judge said of each answer, as a table beside the predictions: `judgements.parquet`.

Lives here: writing it, joining it to rows, handing it to people. Does not live here: what was asked (`judge.py`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import disk, spec
from luthier.errors import MissingExtra, NotFound
from luthier.evaluation.predictions import Row
from luthier.evaluation.verdicts import SCALE, Mode

if TYPE_CHECKING:
    import pyarrow as pa  # heavy: only who asks a judge waits for it

TABLE = "judgements.parquet"

Said = tuple[int | None, str]
"""A verdict on its scale, and the judge's words."""

_COLUMNS = ("id", "where", "side", "prompt", "reference", "answer", "verdict", "value", "rationale", "mode", "model")


def ends(mode: Mode) -> tuple[float, float]:
    """The worst and the best value of the metric."""
    return _value(SCALE[mode][0], mode), _value(SCALE[mode][1], mode)


def _value(verdict: int, mode: Mode) -> float:
    """Grades and right or wrong as they are; a preference as what it adds to a share: 1, a half, or 0."""
    return (verdict + 1) / 2 if mode == "pairwise" else float(verdict)


def write(rows: Sequence[Row], said: Mapping[tuple[str, str], Said], wishes: spec.Judge, folder: Path) -> None:
    """One line an answer, in the order of the rows; `said` by row id and side."""
    import pyarrow as pa
    from pyarrow import parquet

    numbers = {"verdict": pa.int64(), "value": pa.float64()}
    schema = pa.schema([(name, numbers.get(name, pa.string())) for name in _COLUMNS])
    lines = []
    for row in rows:
        for side, p in row.sides.items():
            verdict, rationale = said[p.id, side]
            value = None if verdict is None else _value(verdict, wishes.mode)
            reference = p.references[0] if p.references else None
            told = (p.id, p.where, side, p.prompt, reference, p.answer, verdict, value, rationale)
            lines.append(dict(zip(_COLUMNS, (*map(_clean, told), wishes.mode, wishes.model), strict=True)))
    partial = folder / f".{TABLE}.tmp-{secrets.token_hex(4)}"
    try:
        parquet.write_table(pa.Table.from_pylist(lines, schema), partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(folder / TABLE)
    finally:
        partial.unlink(missing_ok=True)
    disk.sync(folder)


def _clean(value: Any) -> Any:
    """Text as Arrow can hold it: half a surrogate pair becomes its escape."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def joined(rows: Sequence[Row], folder: Path) -> list[Row]:
    """`rows` of a folder's predictions with what its judge said of them, if it was asked."""
    if not (folder / TABLE).is_file():
        return list(rows)
    said = {
        (line["id"], line["side"], line["answer"]): (line["value"], line["rationale"])
        for line in table(folder).to_pylist()
    }
    found = []
    for row in rows:
        told = {name: said.get((p.id, name, _clean(p.answer)), (None, None)) for name, p in row.sides.items()}
        found.append(_valued(row, told))
    return found


def frame(path: str | Path) -> Any:
    """The judgements of a run's folder as a pandas frame: one row an answer, `verdict` a whole number or <NA>.

    Raises NotFound, MissingExtra.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtra(
            "a frame needs pandas, which is not installed", hint="pip install 'luthier[judge]'"
        ) from None
    import pyarrow as pa

    return table(path).to_pandas(types_mapper={pa.int64(): pandas.Int64Dtype()}.get)


def table(path: str | Path) -> pa.Table:
    """The same as an Arrow table."""
    place = Path(path) / TABLE if Path(path).is_dir() else Path(path)
    if not place.is_file():
        raise NotFound(
            "there are no judgements", str(place), "`evaluation: {judge: MODEL}` in the experiment makes some"
        )
    from pyarrow import parquet

    return parquet.read_table(place)


def write_csv(path: str | Path, out: str | Path) -> None:
    """The same as a CSV file."""
    from pyarrow import csv

    csv.write_csv(table(path), out)


def _valued(row: Row, told: Mapping[str, tuple[float | None, str | None]]) -> Row:
    sides = {name: replace(p, judged=told[name][0], rationale=told[name][1] or "") for name, p in row.sides.items()}
    values = {
        name: {**each, "judge": told[name][0]} if told[name][0] is not None else each
        for name, each in row.values.items()
    }
    return Row(sides, values)
