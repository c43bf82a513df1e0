"""A request to stop, which every worker of a run sees, whatever process it lives in."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StopToken:
    """A file whose presence asks everybody who holds the token to finish their step and save.

    Attributes:
        path: The file; unique to one command, so that an old request stops nothing new.
        owner: The process that made the token; workers stop, too, when it is gone.
    """

    path: Path
    owner: int

    @classmethod
    def create(cls, folder: Path) -> StopToken:
        """A new token in a run's folder; nothing is written yet."""
        return cls(folder / f"stop-{uuid.uuid4().hex[:12]}", os.getpid())

    def request(self) -> None:
        """Ask to stop. An empty file needs no free space; if even that fails, the signal still ends us."""
        self.path.touch()

    def requested(self) -> bool:
        """Whether somebody asked to stop, or the process that gave out the work has died."""
        orphaned = os.getpid() != self.owner and os.getppid() != self.owner
        return orphaned or self.path.exists()

    def clear(self) -> None:
        """Remove the request."""
        self.path.unlink(missing_ok=True)
