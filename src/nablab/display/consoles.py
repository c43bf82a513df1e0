"""The console that all human-readable text goes through.

No text that it is given can steer the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# A run, a file name or a picture's label may come from elsewhere and hold escape
# sequences, which would recolor the terminal, write over what stands there, or set its
# title.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SHOWN = "\N{REPLACEMENT CHARACTER}"


class SafeConsole(Console):
    """A console that shows a sign for control characters, instead of sending them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Lay something out; see `rich.console.Console.render`.

        What rich itself steers the terminal with stays.
        """
        for segment in super().render(renderable, options):
            if segment.control or not STEERING.search(segment.text):
                yield segment
            else:
                yield Segment(STEERING.sub(SHOWN, segment.text), segment.style)
