"""Verses of the King James Bible (1611), which come with nablab.

They are here so that experiments on texts start without a download: real sentences, in
four classes that a linear classifier tells apart in 85 of 100 cases. The books are

    history    1 and 2 Samuel, 1 and 2 Kings
    wisdom     Job, Proverbs, Ecclesiastes
    prophets   Isaiah, Jeremiah
    gospels    Matthew, Mark, Luke

Each line of the file is a class, a tab and a verse, without its number. The text is the
one that Debian's package bible-kjv-text 4.38 has; its copyright has expired. In the
United Kingdom the Crown holds a patent on printing it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nablab.data.fetching.download import SourceError
from nablab.data.fetching.sources import unpack_xz
from nablab.data.known.known_texts import EmbeddedTexts
from nablab.errors import DataError

if TYPE_CHECKING:
    from nablab.data.text.text_set import TextSet

FILE = Path(__file__).with_name("king_james.tsv.xz")
# Counted by `data.find_duplicates`; the Gospels and the prophets repeat one another.
TWINS = (
    "42 of the 2,803 test texts of king-james are in its training split as well, 17 of "
    "them to the letter"
)
SIZE = 1_528_701  # bytes, unpacked
SHA256 = "bcc0c2bbe42113a45d3b6ed52cab621e6f170a3a24a70f3d52d476685e704b1b"


@dataclass(frozen=True, kw_only=True)
class KingJames(EmbeddedTexts):
    """The verses, with a split of nablab's."""

    def load(self, split: str) -> TextSet:
        """Return a split; which verse is in which is drawn once, by seed 0."""
        import torch

        from nablab.data.text.text_set import TextSet

        lines = _lines()
        order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
        train, test = order[: self.samples["train"]], order[self.samples["train"] :]
        chosen = [lines[place] for place in (train if split == "train" else test)]
        return TextSet(
            name=self.name,
            split=split,
            texts=tuple(verse for _, verse in chosen),
            labels=torch.tensor([self.classes.index(name) for name, _ in chosen]),
            classes=self.classes,
            license=self.license,
            citation=self.citation,
            source=self.package,
            notes=(TWINS,) if split == "train" else (),
        )


KING_JAMES = KingJames(
    name="king-james",
    title="Bible verses by kind of book",
    package="nablab",
    samples={"train": 8_000, "test": 2_803},
    classes=("history", "wisdom", "prophets", "gospels"),
    license="public domain",
    citation="The Holy Bible, King James Version, 1611",
)


@cache
def _lines() -> list[tuple[str, str]]:
    """Read all classes and verses, in the order of the books."""
    try:
        content = unpack_xz(FILE, SIZE)
    except (SourceError, OSError) as error:
        raise DataError(f"{error}. Install nablab again.") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"{FILE} is damaged. Install nablab again.")
    pairs = (line.split("\t") for line in content.decode("ascii").splitlines())
    return [(name, verse) for name, verse in pairs]
