"""Rows and their cells as every reader gives them: plain, finite, of bounded depth and length.

Lives here: the checks of values that come as Python objects. Does not live here: JSON text (`strict_json.py`).
"""

from __future__ import annotations

import datetime
import decimal
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.strict_json import MAX_DEPTH, whole_characters
from luthier.data.textfiles import MAX_ROW, too_long
from luthier.errors import DataError

Row = tuple[dict[str, Any], str, int]
"""A row, the file it came from as the user named it, and its line (parquet, Hub, iterables: its number), from 1."""


def plain(value: Any, where: str, column: str, depth: int = 1) -> Any:
    """`value` as JSON knows it (dates and decimals become text); DataError for anything else, NaN included."""
    if value is None or isinstance(value, str | bool):
        return _text(value, where) if isinstance(value, str) else value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, decimal.Decimal | datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise DataError(f"the column `{column}` holds {float(value)}, which cannot be trained on", where)
        return float(value)
    if depth >= MAX_DEPTH:
        raise DataError(f"nested deeper than {MAX_DEPTH} levels", where)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, where, column, depth + 1) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(inner, where, column, depth + 1) for inner in value]
    raise DataError(f"the column `{column}` holds a {type(value).__name__}, which is not plain data", where)


def _text(value: str, where: str) -> str:
    if len(value) > MAX_ROW:
        raise too_long("row", where)
    return whole_characters(value, where)
