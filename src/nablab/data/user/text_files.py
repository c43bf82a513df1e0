"""The content of a text file: unpacked and decoded, or refused in a sentence."""

from __future__ import annotations

import gzip
import shlex
import zlib
from pathlib import Path

from nablab.data.user.limits import check_fits, check_ratio
from nablab.errors import UsageError
from nablab.files.places import in_text

# Bytes in memory for each of the file: as read, decoded (which takes up to 4 where
# there is one emoji), and its texts.
COPIES = 4
ROW = 300  # bytes that Python's objects for a row of two cells take, measured
PIECE = 1 << 24  # bytes unpacked at once
REMEDY = "Split the file, or take fewer rows."


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        path: The file; one whose name ends in ``.gz`` is unpacked.

    Raises:
        UsageError: It is empty, damaged, too large for the memory, in another encoding,
            or no text; the text of the error names the line.
    """
    where = in_text(path)
    try:
        packed = path.suffix.lower() == ".gz"
        content = _unpacked(path, where) if packed else _plain(path, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{where} is damaged ({error}). Pack it again.") from error
    except OSError as error:
        raise UsageError(
            f"{where} cannot be read: {error.strerror}. Make it readable."
        ) from error
    if not content.strip():
        raise UsageError(f"{where} is empty. Remove it, or give it a text.")
    return _decoded(content, where)


def _plain(path: Path, where: str) -> bytes:
    check_fits(COPIES * path.stat().st_size, where, REMEDY)
    content = path.read_bytes()
    _check_rows(content, where)
    return content


def _unpacked(path: Path, where: str) -> bytes:
    """Unpack a file piece by piece.

    What a gzip file says of its size cannot be relied on.
    """
    size = path.stat().st_size
    pieces: list[bytes] = []
    unpacked = 0
    with gzip.open(path) as file:
        while piece := file.read(PIECE):
            pieces.append(piece)
            unpacked += len(piece)
            check_ratio(
                size,
                unpacked,
                where,
                noun="texts",
                remedy="If you trust it, unpack it with gunzip.",
            )
            check_fits(COPIES * unpacked, where, REMEDY)
    content = b"".join(pieces)
    _check_rows(content, where)
    return content


def _check_rows(content: bytes, where: str) -> None:
    """Refuse more rows than there is memory for: short ones take far more than bytes."""
    rows = max(content.count(b"\n"), content.count(b"\r"))
    check_fits(COPIES * len(content) + ROW * rows, where, REMEDY)


def _decoded(content: bytes, where: str) -> str:
    """Decode a file by its byte order mark, or as UTF-8 if it has none."""
    encoding = "utf-8-sig"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        # Places count from behind the mark in `error.object`, not in `content`.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{where} is not {encoding.removesuffix('-sig').upper()}: byte "
            f"0x{error.object[error.start]:02x} in line {line:,}. Convert it, such as "
            f"with 'iconv -f latin1 -t utf-8 {shlex.quote(where)}', if that is its "
            "encoding."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(
            f"{where} holds a zero character in line {line:,}: it is no text file, or "
            "UTF-16 without a byte order mark. Convert it with iconv."
        )
    return text
