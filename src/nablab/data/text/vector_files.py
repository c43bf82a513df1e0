"""Word vectors as text: a line for each word, as GloVe, word2vec and fastText write it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import IO

import numpy as np
import torch
from torch import Tensor

from nablab.errors import UsageError

LINES_AT_ONCE = 10_000
LONGEST = 1_000_000  # bytes of a line; 10,000 dimensions take 100,000

# A line number, a word and its numbers.
Row = tuple[int, str, str]


def read_vectors(
    stream: IO[bytes], where: str, most: int | None = None
) -> tuple[tuple[str, ...], Tensor]:
    """Read words and vectors, from the first line on.

    A line is a word and its numbers, with spaces or tabs between. word2vec and fastText
    write a first line with the numbers of words and dimensions. Some of GloVe's words
    have spaces inside: a word is what stands before the last D numbers.

    Args:
        stream: The file.
        where: Names it in messages.
        most: How many words to read; None for all.

    Returns:
        V words, and float32 (V, D).

    Raises:
        UsageError: It is not of that form; the text names the line.
    """
    lines = _lines(stream, where)
    number, first = next(lines, (0, ""))
    if not first:
        raise UsageError(
            f"{where} is empty: it should have a word and its vector a line."
        )
    header = _header(first)
    if header:
        number, first = next(lines, (0, ""))
        if not first:
            raise UsageError(f"{where} has a line of counts, and no word after it.")
    dimensions = _dimensions(first, number, where)
    if header and header[1] != dimensions:
        raise UsageError(
            f"{where} says in line 1 that vectors have {header[1]:,} dimensions, and the "
            f"one in line {number:,} has {dimensions:,}. Is the file whole?"
        )
    rows = _rows(_again((number, first), lines), dimensions, where)
    words: list[str] = []
    blocks: list[np.ndarray] = []
    kept = islice(rows, most)
    while block := list(islice(kept, LINES_AT_ONCE)):
        words += [word for _, word, _ in block]
        blocks.append(_numbers(block, where))
    if header and header[0] != len(words) and (most is None or len(words) < most):
        raise UsageError(
            f"{where} says in line 1 that it has {header[0]:,} words, and it has "
            f"{len(words):,}. Is the file whole?"
        )
    return tuple(words), torch.from_numpy(np.concatenate(blocks))


def _lines(stream: IO[bytes], where: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers."""
    number = 0
    # Python's own lines of a text would also end at characters that words may hold.
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise UsageError(
                f"{where}, line {number:,}: longer than {LONGEST:,} bytes. A line is one "
                "word and its vector; is this a file of word vectors?"
            )
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{where} is not UTF-8: byte 0x{line[error.start]:02x} in line "
                f"{number:,}. Convert it, such as with 'iconv -f latin1 -t utf-8', if "
                "that is its encoding."
            ) from error
        if text := text.rstrip(" \t\r\n"):
            yield number, text


def _again(
    first: tuple[int, str], lines: Iterator[tuple[int, str]]
) -> Iterator[tuple[int, str]]:
    yield first
    yield from lines


def _header(line: str) -> tuple[int, int] | None:
    """Read the numbers of words and dimensions; None if the line holds others."""
    parts = line.split()
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        return int(parts[0]), int(parts[1])
    return None


def _dimensions(line: str, number: int, where: str) -> int:
    """Count the numbers of the first vector."""
    word, *numbers = line.split()
    if not numbers or not all(map(_is_number, numbers)):
        bad = next((part for part in numbers if not _is_number(part)), "")
        found = f"'{bad[:40]}' is not a number" if bad else f"only '{word[:40]}'"
        raise UsageError(
            f"{where}, line {number:,}: {found}. A line is a word and its vector, with "
            "spaces between."
        )
    return len(numbers)


def _rows(
    lines: Iterator[tuple[int, str]], dimensions: int, where: str
) -> Iterator[Row]:
    """Split lines into a word and its numbers."""
    for number, line in lines:
        word, _, numbers = line.partition(" ")
        if numbers.count(" ") != dimensions - 1 or not word:
            # Tabs, several spaces, a word with spaces, or a wrong number of numbers.
            parts = line.rsplit(None, dimensions)
            word, numbers = parts[0], " ".join(parts[1:])
            more = [part for part in word.split()[1:] if _is_number(part)]
            if len(parts) <= dimensions or len(more) == len(word.split()) - 1 > 0:
                there = len(line.split()) - 1
                raise UsageError(
                    f"{where}, line {number:,}: {there:,} numbers in place of "
                    f"{dimensions:,}. Is the file whole?"
                )
        yield number, word.strip(), numbers


def _numbers(rows: list[Row], where: str) -> np.ndarray:
    """Parse the numbers of some rows: float32 (rows, D)."""
    try:
        found = np.loadtxt(
            [numbers for _, _, numbers in rows], np.float32, comments=None, ndmin=2
        )
    except ValueError as error:
        for number, _, numbers in rows:
            bad = next((part for part in numbers.split() if not _is_number(part)), None)
            if bad is not None:
                raise UsageError(
                    f"{where}, line {number:,}: '{bad[:40]}' is not a number."
                ) from error
        raise
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_000, and no other program does
