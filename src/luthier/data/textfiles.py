"""Text files as pieces of text and as lines: compression, byte order marks, encodings, limits.

Lives here: what a file is when it is not UTF-8 text, and where. Does not live here: what the text says
(`json_files.py`, `tables.py`), which encoding it looks like (`encodings.py`).
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NoReturn, cast

from luthier.data.encodings import SAMPLE, better_encoding, guess_encodings
from luthier.errors import DataError

MAX_ROW = 8 << 20
"""Characters of one row, or of one line."""
MAX_WHOLE_BYTES = 1 << 30
"""Of a compressed file that can only be read whole (parquet)."""
FREE_UNPACKED, MAX_RATIO = 1 << 30, 200
"""A .gz may unpack to this many bytes in any case; beyond it, to this many times its size."""
_PIECE = 1 << 20
_HEAD = 64

_OTHER_FILES = (
    (b"\x1f\x8b", "gzip-compressed", "name it .gz"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it; of a spreadsheet save the sheet as .csv"),
    (b"PK\x05\x06", "an empty zip archive", "unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet", "save the sheet as .csv"),
    (b"PAR1", "a parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow file", "write it as .parquet"),
    (b"BZh", "bzip2-compressed", "unpack it, or compress it with gzip"),
    (b"\xfd7zXZ", "xz-compressed", "unpack it, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it, or compress it with gzip"),
    (b"%PDF", "a PDF", None),
    (b"SQLite format 3", "an SQLite database", "write the table as .csv"),
    (b"\x80\x04\x95", "a Python pickle, which can run code", "write the rows as .jsonl"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch it: git lfs pull"),
    (b"<!DOCTYPE", "a web page", "the download gave a page instead of the file"),
    (b"<!doctype", "a web page", "the download gave a page instead of the file"),
    (b"<html", "a web page", "the download gave a page instead of the file"),
)
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32"),
    (b"\x00\x00\xfe\xff", "UTF-32", "utf-32"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16"),
)


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[BinaryIO]:
    """The content of `path`, unpacked if it is a .gz; trouble with the file itself becomes a DataError."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as stream:
            yield cast(BinaryIO, stream)
    except gzip.BadGzipFile as error:
        if "not a gzipped file" in str(error).lower():
            raise DataError("not a gzip file, although named .gz", name, "take .gz off its name") from None
        raise _damaged(error, name) from None
    except (EOFError, zlib.error) as error:
        raise _damaged(error, name) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", name) from None


def _damaged(error: Exception, where: str) -> DataError:
    return DataError(f"damaged gzip file: {str(error).lower()}", where, "copy or compress it again")


class _Pieces:
    """Decodes a stream piece by piece and knows the line and the byte it is at."""

    def __init__(self, path: Path, name: str, encoding: str | None) -> None:
        self.path, self.name = path, name
        asked = codecs.lookup(encoding or "utf-8").name
        self.encoding = None if asked in ("utf-8", "utf-8-sig") else encoding
        self.decoder = codecs.getincrementaldecoder(self.encoding or "utf-8")("strict")
        self.watch = _Watch(self.encoding) if self.encoding else None
        self.line, self.taken = 1, 0

    def read(self, stream: BinaryIO, size: int) -> Iterator[str]:
        raw = stream.read(_HEAD)
        self._check_head(raw)
        first = True
        while True:
            self.taken += len(raw)
            self._check_ratio()
            text = self._decode(raw, stream)
            if first and text:
                text, first = self._without_mark(text), False
            if "\x00" in text:
                self.line += text.count("\n", 0, text.index("\x00"))
                self._refuse(raw, raw.find(0), "NUL bytes in the text", stream)
            yield text
            if not raw:
                break
            self.line += text.count("\n")
            raw = self._next(stream, size)
        if self.watch is not None:
            self.watch.check(f"{self.name}:1")

    def _next(self, stream: BinaryIO, size: int) -> bytes:
        try:
            return cast(bytes, stream.read1(size))  # type: ignore[attr-defined]  # both kinds of stream have it
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(error, f"{self.name}:{self.line}") from None

    def _check_head(self, raw: bytes) -> None:
        for magic, kind, advice in _OTHER_FILES:
            if raw.startswith(magic):
                raise DataError(f"the file is {kind}", f"{self.name}:1", advice)
        for mark, kind, codec in _MARKS if self.encoding is None else ():
            if raw.startswith(mark):
                message = f"the file is {kind} (byte order mark at byte 0), not UTF-8"
                raise DataError(message, f"{self.name}:1", _how_to_read(codec, kind))
        if self.encoding is not None and codecs.lookup(self.encoding).name == "utf-16":
            found = guess_encodings(raw)
            if raw[:2] != codecs.BOM_UTF16_BE and found and found[0].codec == "utf-16-be":
                message = "UTF-16 without a byte order mark, and its bytes stand the other way round"
                raise DataError(message, f"{self.name}:1", "data.encoding: utf-16-be")

    def _check_ratio(self) -> None:
        if self.path.suffix.lower() == ".gz":
            check_ratio(self.taken, self.path, f"{self.name}:{self.line}")

    def _decode(self, raw: bytes, stream: BinaryIO) -> str:
        if self.watch is not None:
            self.watch.see(raw)
        try:
            return self.decoder.decode(raw, not raw)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError):  # "UTF-16 stream does not start with BOM" and the like
                raise DataError(f"not {self.encoding}: {error}", f"{self.name}:{self.line}") from None
            if not raw:
                message = "the file ends inside a character"
                raise DataError(message, f"{self.name}:{self.line}", "is it cut off? Copy it again") from None
            whole, at = bytes(error.object), error.start
            before = codecs.getincrementaldecoder(error.encoding)("replace").decode(whole[:at])
            self.line += before.count("\n")
            self._refuse(whole, at, f"not {self.encoding or 'UTF-8'}", stream)

    def _refuse(self, raw: bytes, at: int, what: str, stream: BinaryIO) -> NoReturn:
        """`raw` are the bytes read last; the text goes wrong `at` this one of them."""
        where = f"{self.name}:{self.line}"
        told = f"{what}, at byte {self.taken - len(raw) + at:,}"
        if self.encoding is not None:
            raise DataError(told, where, f"the file, or this line of it, is not {self.encoding}")
        sample = raw if 0 in raw else raw[raw.rfind(b"\n", 0, at) + 1 :]
        if len(sample) < SAMPLE:
            sample += stream.read(SAMPLE)
        found = guess_encodings(sample)
        if not found:
            raise DataError(told, where, "is it a binary file, or a damaged one?")
        told += f"; it looks like {' or '.join(guess.name for guess in found)}"
        raise DataError(told, where, _how_to_read(found[0].codec, found[0].iconv))

    def _without_mark(self, text: str) -> str:
        if text.startswith("\ufffe"):
            message = f"not {self.encoding}: its byte order mark says otherwise"
            raise DataError(message, f"{self.name}:1", "data.encoding: utf-16 obeys the mark")
        return text.removeprefix("\ufeff")


class _Watch:
    """What text that is read in another encoding is in truth, where it would come out garbled, not refused."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")("strict")
        self.wide, self.sample = 0, b""
        self.needed = 4 if len("中".encode(encoding, "ignore")) == 2 else 1  # a pair of two bytes is valid by chance

    def see(self, raw: bytes) -> None:
        if len(self.sample) < SAMPLE and not raw.isascii():
            self.sample += raw[: SAMPLE - len(self.sample)]
        if self.decoder is None:
            return
        try:
            text = self.decoder.decode(raw, not raw)
        except UnicodeDecodeError:
            text = "\x00"
        if "\x00" in text:
            self.decoder = None
        elif not text.isascii():
            self.wide += len(text) - len(text.encode("ascii", "ignore"))

    def check(self, where: str) -> None:
        """To be called at the end: DataError if the text is UTF-8, or clearly of another encoding."""
        if self.decoder is not None and self.wide >= self.needed:
            hint = "take data.encoding out; other files that need it can be saved as UTF-8"
            raise DataError(f"the file is UTF-8, not {self.encoding}", where, hint)
        other = better_encoding(self.sample, self.encoding)
        if other is not None:
            hint = _how_to_read(other.codec, other.iconv)
            raise DataError(f"the file looks like {other.name}, not {self.encoding}", where, hint)


def begins_with_mark(path: Path, name: str) -> bool:
    """Whether a UTF-8 text begins with a byte order mark, which is no part of what it says."""
    with open_bytes(path, name) as stream:
        return stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def check_ratio(unpacked: int, path: Path, where: str) -> None:
    """Refuse a .gz that unpacks to a monstrous multiple of its size: damaged, or meant to fill the machine."""
    if unpacked > FREE_UNPACKED and unpacked > MAX_RATIO * path.stat().st_size:
        message = f"unpacks to more than {MAX_RATIO} times its size"
        raise DataError(message, where, "if it is honest, unpack it and name the unpacked file")


def _how_to_read(codec: str, iconv: str) -> str:
    command = f"iconv -f {iconv} -t UTF-8 OLD > NEW"
    return f"data.encoding: {codec} reads it; or save it as UTF-8: {command}"


def text_pieces(path: Path, name: str, encoding: str | None = None, size: int = _PIECE) -> Iterator[str]:
    """The text of a file in pieces of about `size` bytes, cut anywhere; a byte order mark is not part of it.

    Strict: raises DataError with file:line and byte for what is not UTF-8 (or not `encoding`), NUL bytes, other kinds
    of files, damaged or monstrous compression; the message then says which encoding it looks like, and how to read it.
    """
    with open_bytes(path, name) as stream:
        yield from _Pieces(path, name, encoding).read(stream, size)


def line_groups(pieces: Iterator[str], name: str, line: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Whole lines without their `\\n`, many at a time, with the number of the first; only `\\n` ends a line.

    Raises DataError for a line longer than MAX_ROW characters; such a line is never held whole.
    """
    begun: list[str] = []
    length = 0
    for piece in pieces:
        found = piece.split("\n")
        begun.append(found[0])
        length += len(found[0])
        if length > MAX_ROW:
            raise too_long("line", f"{name}:{line}")
        if len(found) > 1:
            found[0] = "".join(begun)
            begun = [found.pop()]
            length = len(begun[0])
            yield line, found
            line += len(found)
    if length:
        yield line, ["".join(begun)]


def too_long(what: str, where: str) -> DataError:
    return DataError(f"a {what} longer than {MAX_ROW:,} characters", where, "split it, or take it out")
