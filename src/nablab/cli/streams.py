"""Standard output and error: any character can be written, and JSON stands alone.

A terminal in Latin-1, a log in ASCII and the Windows code pages lack characters that
texts here have, and a name on the disk may hold bytes that no encoding has. Those are
written as the nearest that can be read.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TextIO

READABLE = "nablab.readable"
# Signs whose decomposition (é into e and an accent) holds no ASCII.
SIGNS = {
    "→": "->", "←": "<-", "↔": "<->", "⇒": "=>", "≤": "<=", "≥": ">=", "≠": "!=",
    "≈": "~", "×": "x", "·": "*", "÷": "/", "±": "+-", "−": "-", "–": "-", "—": "-",
    "‖": "||", "∞": "inf", "√": "sqrt", "∑": "sum", "∂": "d", "∇": "grad", "∈": "in",
    "∥": "||", "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*", "…": "...", "✓": "+",
    "✗": "x", "✔": "+", "✘": "x", "ℓ": "l", "α": "alpha", "β": "beta", "γ": "gamma",
    "δ": "delta", "ε": "epsilon", "η": "eta", "θ": "theta", "κ": "kappa", "λ": "lambda",
    "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Σ": "Sigma",
    "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
# What rich draws tables, bars and waiting with.
DRAWN = {"─": "-", "━": "-", "│": "|", "┃": "|", "╸": "-", "╺": "-", "═": "=", "║": "|"}


def _nearest(sign: str) -> str:
    """Write one character in ASCII, or in the few letters that name it.

    It becomes ``?`` where there is nothing like it.

    >>> "".join(map(_nearest, "‖Hg‖ ≤ ½ · Zoë…"))
    '||Hg|| <= 1/2 * Zoe...'
    """
    if sign.isascii():
        return sign
    named = SIGNS.get(sign) or DRAWN.get(sign)
    if named:
        return named
    parts = unicodedata.normalize("NFKD", sign).replace("⁄", "/")
    parts = "".join(
        SIGNS.get(part, part) for part in parts if not unicodedata.combining(part)
    )
    if parts and parts.isascii():
        return parts
    box = "BOX DRAWINGS" in unicodedata.name(sign, "")
    return "+" if box else "?"


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_nearest, error.object[error.start : error.end])), error.end


codecs.register_error(READABLE, _replaced)


def make_readable() -> None:
    """Let standard output and error write every character, whatever their encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=READABLE)


_reserved: ContextVar[TextIO | None] = ContextVar("reserved for JSON", default=None)


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Keep standard output for what `print_json` prints.

    Everything else goes to standard error meanwhile.

    That holds for the user's Python files, for libraries that write to file descriptor
    1, and for worker processes, which inherit it.
    """
    if not wanted:
        yield
        return
    with _own(sys.stdout) as stream, contextlib.redirect_stdout(sys.stderr):
        before = _reserved.set(stream)
        try:
            yield
        finally:
            _reserved.reset(before)


@contextlib.contextmanager
def _own(stream: TextIO) -> Iterator[TextIO]:
    """Open a stream that nobody else writes to.

    It is a copy of descriptor 1, which is standard error in the meantime.
    """
    if not (_writes_to(stream, 1) and _writes_to(sys.stderr, 2)):
        yield stream  # a test or a notebook put something else there
        return
    stream.flush()
    with os.fdopen(os.dup(1), "w", encoding=stream.encoding, errors=READABLE) as copy:
        os.dup2(2, 1)
        try:
            yield copy
        finally:
            os.dup2(copy.fileno(), 1)


def _writes_to(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, AttributeError, ValueError):
        return False


def print_json(value: Any) -> None:
    """Print JSON that any program can read: NaN and infinity become strings.

    Characters that the encoding of standard output lacks are escaped, so that none is
    changed.
    """
    from nablab.lab.files import finite

    plain, stream = finite(value), _reserved.get() or sys.stdout
    text = json.dumps(plain, indent=1, ensure_ascii=False)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(plain, indent=1)
    print(text, file=stream)
