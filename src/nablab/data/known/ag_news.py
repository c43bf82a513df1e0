"""AG News: 127,600 short news of four kinds (Gulli 2005; Zhang, Zhao, LeCun 2015).

A row of the official files is a label from 1 to 4, a title and a description. A text is
title and description, cleaned of what is left of the pages they were taken from.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from nablab.data.fetching.sources import Files
from nablab.data.known.known_set import Edition, File
from nablab.data.known.known_texts import KnownTexts
from nablab.data.text.cleaning import clean
from nablab.errors import DataError


@dataclass(frozen=True, kw_only=True)
class AgNews(KnownTexts):
    """The set in its official form: a table without a header."""

    def decode(self, name: str, content: bytes) -> tuple[list[str], list[int]]:
        """See `KnownTexts.decode`."""
        try:
            rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
            labels = [int(row[0]) - 1 for row in rows]
        except (UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
            raise DataError(f"{name} holds something else than news.") from error
        return [clean(" ".join(row[1:])) for row in rows], labels


# SHA-256 of the test file computed; that of the training file is the one that several
# projects list together with it. The MD5 are those of torchtext (b1a00f82...,
# d52ea96a...).
AG_NEWS = AgNews(
    name="ag-news",
    title="short news",
    files=(
        File(
            "train.csv",
            29_470_338,
            "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e",
        ),
        File(
            "test.csv",
            1_857_427,
            "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
        ),
    ),
    splits={"train": ("train.csv",), "test": ("test.csv",)},
    samples={"train": 120_000, "test": 7_600},
    classes=("world", "sports", "business", "science"),
    license="non-commercial",
    citation="Zhang, Zhao, LeCun: Character-level Convolutional Networks for Text "
    "Classification, NIPS 2015",
    sources=(
        Files(
            "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/",
            packed=False,
        ),
    ),
    folders=("ag_news", "ag_news_csv", "AG_NEWS"),
    editions=(
        Edition(
            split="train",
            file=File(
                "train_subset.csv",
                5_920_541,
                "bc0075b167d4e3ec65e4e5bc5ebce0db9dde057d8abacc0ae3e81c661fc4c60e",
            ),
            samples=25_257,
            note="the training texts are 25,257 of the 120,000, from train_subset.csv",
        ),
    ),
    # Counted by `data.find_duplicates`. Within train_subset.csv and the test split, 40
    # and 25 texts nearly stand there a second time.
    notes={
        "train_subset.csv": "20 of the 7,600 test texts of ag-news are nearly the same as "
        "one of train_subset.csv",
    },
)
