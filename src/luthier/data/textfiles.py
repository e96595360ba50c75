"""Bytes and lines of text files: compression, byte order marks, encodings, limits.

Lives here: `lines` and `whole_text`, which say what a file is when it is not UTF-8. Does not live here: what the text
says (`sources.py`).
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from luthier.errors import DataError

MAX_LINE_BYTES = 8 << 20
MAX_WHOLE_BYTES = 1 << 30
_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_MAGIC = (
    (b"\x1f\x8b", "gzip-compressed", "name it .gz"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it"),
)
_CANDIDATES = ["utf_16", "utf_16_le", "utf_16_be", "cp949", "shift_jis", "euc_jp", "gb18030", "big5", "cp1252"]
_PLAIN_NAMES = {"cp949": "CP949", "shift_jis": "Shift-JIS", "euc_jp": "EUC-JP", "cp1252": "latin-1"}


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[BinaryIO]:
    """The content of `path`, unpacked if it is a .gz; trouble with the file itself becomes a DataError."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as stream:
            yield cast(BinaryIO, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"damaged gzip file: {error}", name, "copy or compress it again") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", name) from None


def lines(path: Path, name: str, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and line with its ending, decoded strictly; a byte order mark is not part of the text.

    Raises DataError with file:line for a line above MAX_LINE_BYTES, NUL bytes, and text that is not UTF-8 (or not
    `encoding`); the message then says which encoding it looks like.
    """
    _check_encoding(encoding)
    with open_bytes(path, name) as stream:
        if encoding and codecs.lookup(encoding).name != "utf-8":
            yield from _decoded_lines(stream, name, encoding)
            return
        offset, number = 0, 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{name}:{number}"
            if number == 1:
                _refuse_other_files(raw, name)
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"a line longer than {MAX_LINE_BYTES >> 20} MB", where)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(raw + stream.read(65536), where, offset + error.start) from None
            if "\x00" in text:
                raise _not_utf8(raw + stream.read(65536), where, offset + raw.index(0))
            yield number, text.removeprefix("\ufeff") if number == 1 else text
            offset += len(raw)


def whole_text(path: Path, name: str, encoding: str | None = None) -> str:
    """All of a text file, for formats that are not line by line; at most MAX_WHOLE_BYTES."""
    parts, size = [], 0
    for _, line in lines(path, name, encoding):
        parts.append(line)
        size += len(line)
        if size > MAX_WHOLE_BYTES:
            raise DataError(f"larger than {MAX_WHOLE_BYTES >> 30} GB", name, "write one object per line (.jsonl)")
    return "".join(parts)


def _check_encoding(encoding: str | None) -> None:
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise DataError(
            f"`{encoding}` is not an encoding", hint="for example utf-16, cp949, shift-jis, latin-1"
        ) from None


def _decoded_lines(stream: BinaryIO, name: str, encoding: str) -> Iterator[tuple[int, str]]:
    text, number = io.TextIOWrapper(stream, encoding=encoding, newline="\n"), 0
    try:
        while line := text.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"a line longer than {MAX_LINE_BYTES >> 20} MB", f"{name}:{number}")
            if "\x00" in line:
                raise DataError("NUL characters in the text", f"{name}:{number}", f"the file may not be {encoding}")
            yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        raise DataError(f"not {encoding} near line {number + 1}: {error}", f"{name}:{number + 1}") from None


def _refuse_other_files(raw: bytes, name: str) -> None:
    for mark, kind in _BOMS:
        if raw.startswith(mark):
            raise DataError(f"the file is {kind} (byte order mark at byte 0), not UTF-8", f"{name}:1", _convert(kind))
    for magic, kind, advice in _MAGIC:
        if raw.startswith(magic):
            raise DataError(f"the file is {kind}", f"{name}:1", advice)


def _convert(encoding: str) -> str:
    return f"save it as UTF-8, for example: iconv -f {encoding} -t UTF-8 OLD > NEW"


def _not_utf8(sample: bytes, where: str, offset: int) -> DataError:
    guess = guess_encoding(sample)
    if guess is None:
        return DataError(f"not UTF-8 text at byte {offset}", where, "is it a binary file?")
    return DataError(f"not UTF-8 at byte {offset}; it looks like {guess}", where, _convert(guess))


def guess_encoding(sample: bytes) -> str | None:
    """The most likely encoding of text that is not UTF-8, by the name people use; None for what is no text.

    charset-normalizer proposes. It takes Japanese for Korean (the bytes overlap), so kana decide for Japanese.
    """
    from charset_normalizer import from_bytes

    if sample.count(0) * 8 > len(sample) * 3:
        return "UTF-16BE" if sample[::2].count(0) > sample[1::2].count(0) else "UTF-16"
    if 0 in sample:
        return None
    for name in ("shift_jis", "euc_jp"):
        if _kana_share(sample, name) > 0.2:
            return _PLAIN_NAMES[name]
    found = [match.encoding for match in from_bytes(sample, cp_isolation=_CANDIDATES)]
    return _PLAIN_NAMES.get(found[0], found[0]) if found else None


def _kana_share(sample: bytes, encoding: str) -> float:
    """Share of full-width kana among the characters that are not ASCII."""
    wide = [c for c in sample.decode(encoding, "replace") if c > "\x7f"]
    if not wide or wide.count("\ufffd") > len(wide) // 20:
        return 0.0
    return sum("\u3040" <= c <= "\u30ff" for c in wide) / len(wide)
