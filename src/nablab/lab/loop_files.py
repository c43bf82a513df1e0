"""Loops of an experiment's own: where each stands, and the files that hold this.

A killed run goes on from these files.

The loops of a condition are numbered as they begin. A file holds one unfinished loop,
or several finished ones in a row, and is named by the first. So a loop that takes an
hour is saved again and again, and thousands of short loops leave a file now and then:
nothing is written before a save is due. What was not saved is done again, with the same
result.

Beside its state, a loop keeps what its body said to the lab (records, curves, logged
points): a resumed run does not go through the body's finished steps again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nablab.contract import Condition
from nablab.errors import UsageError
from nablab.files import checkpoint_files
from nablab.files.checkpoint_files import UnusableCheckpoint
from nablab.lab import drafts, states
from nablab.lab.drafts import Drafts
from nablab.lab.states import Packed
from nablab.lab.store import RunFolder

KIND = "loops of an experiment's own"
# These bound the finished loops that wait in memory for the next save, and then lie in
# one file.
MOST_BYTES, MOST_LOOPS = 64 * 2**20, 10_000


@dataclass(eq=False)
class Loop:
    """A loop of ``lab.steps``.

    Attributes:
        number: How many loops and trainings of the condition began before.
        total: Its steps.
        name: What the experiment calls it, or nothing.
        state: What it changes; None if that is not known, so that it can only be done
            as a whole.
        step: Where it goes on.
        said: What its body said, by the place of the trial.
        looked: The step and the time at which its speed was last measured.
    """

    number: int
    total: int
    name: str
    state: Any
    step: int = 0
    said: Drafts = field(default_factory=dict)
    looked: tuple[int, float] = (0, 0.0)

    def __str__(self) -> str:
        return f"loop '{self.name}'" if self.name else f"loop {self.number + 1}"

    def mark(self, step: int, *, done: bool, following: int) -> Mark:
        """Take down where it stands, before its step ``step``.

        Raises:
            UsageError: Its state, or what was said, cannot be saved.
        """
        # An unfinished loop is written at once; one that ended waits, and its objects
        # may change meanwhile.
        said = states.pack(drafts.plain(self.said), "what was recorded", copies=done)
        return Mark(
            number=self.number,
            name=self.name,
            total=self.total,
            parts=states.names_of(self.state),
            step=step,
            done=done,
            following=following,
            state=states.take(self.state, copies=done),
            said=said,
        )

    def go_on(self, mark: Mark) -> None:
        """Take over where it stood."""
        states.give(self.state, mark.state)
        self.said.update(drafts.from_plain(states.unpack(mark.said)))
        self.step = mark.step


@dataclass(frozen=True)
class Mark:
    """Where a loop stood.

    Attributes:
        number: See `Loop`.
        name: See `Loop`.
        total: See `Loop`.
        parts: The names of the state's parts.
        step: The next step.
        done: Whether the loop has ended; with ``break`` it may end before its last
            step.
        following: The number of the next loop, which another one that is nested in this
            one may take.
        state: What it changed.
        said: What its body said.
    """

    number: int
    name: str
    total: int
    parts: list[str]
    step: int
    done: bool
    following: int
    state: Packed
    said: Packed

    def difference(self, loop: Loop) -> str:
        """Say how the loop differs from the saved one; empty if it does not."""
        pairs = {
            "name": (self.name, loop.name),
            "total": (self.total, loop.total),
            "state": (self.parts, states.names_of(loop.state)),
        }
        changed = [
            f"{key} was {old!r} and is {new!r}"
            for key, (old, new) in pairs.items()
            if old != new
        ]
        return ", ".join(changed)

    def facts(self) -> dict[str, Any]:
        """Return all but the arrays, as JSON types."""
        plain = {name: getattr(self, name) for name in _FACTS}
        return plain | {"state": self.state.structure, "said": self.said.structure}

    def arrays(self) -> dict[str, Any]:
        """Return the arrays, by names that no other loop uses."""
        named = {
            f"{self.number}.state.{name}": array
            for name, array in self.state.arrays.items()
        }
        return named | {
            f"{self.number}.said.{name}": array
            for name, array in self.said.arrays.items()
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> Mark:
        """Make a mark again from its `facts` and `arrays`."""
        plain = {name: facts[name] for name in _FACTS}
        return cls(
            **plain,
            state=_part(facts, arrays, "state"),
            said=_part(facts, arrays, "said"),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.state.nbytes + self.said.nbytes


def _part(facts: Mapping[str, Any], arrays: Mapping[str, Any], part: str) -> Packed:
    prefix = f"{facts['number']}.{part}."
    own = {
        name.removeprefix(prefix): a
        for name, a in arrays.items()
        if name.startswith(prefix)
    }
    return Packed(facts[part], own)


_FACTS = ("number", "name", "total", "parts", "step", "done", "following")


class LoopFiles:
    """The checkpoints of a condition's loops.

    Only the holder of the condition's lock may use them.

    Args:
        folder: The run.
        condition: The condition.
        seeds: The seeds that are run together.
        on_note: Told why a checkpoint is not used.
    """

    def __init__(
        self,
        folder: RunFolder,
        condition: Condition,
        seeds: Sequence[int],
        on_note: Callable[[str], None],
    ) -> None:
        self._folder, self._condition, self._on_note = folder, condition, on_note
        self._fingerprint = {"kind": KIND, "seeds": list(seeds)}
        self._found: dict[int, Mark] = {}
        self._finished: list[Mark] = []  # not on the disk yet, by number
        self._waiting_bytes = 0

    def find(self, loop: Loop) -> Mark | None:
        """Find where an earlier process left this loop; None if nothing known fits."""
        if loop.number not in self._found:
            self._read(loop)
        mark = self._found.pop(loop.number, None)
        if mark is None:
            return None
        if difference := mark.difference(loop):
            self._on_note(
                f"The checkpoint of {loop} is not used: it belongs to another loop "
                f"({difference}). The loop starts from step 0."
            )
            self._forget_from(loop.number)
            return None
        if not mark.done:
            self._on_note(
                f"The {loop} goes on from step {mark.step:,} of {mark.total:,}."
            )
        return mark

    def finish(self, mark: Mark) -> None:
        """Keep a loop that ended for the next save.

        What was nested in it is no longer needed.
        """
        self._drop_nested(mark)
        self._finished.append(mark)
        self._waiting_bytes += mark.nbytes

    def save(self, current: Mark | None = None) -> None:
        """Write the loops that ended since the last save, and the unfinished one.

        Raises:
            StoreError: The disk is full or not writable.
        """
        if current:
            self._drop_nested(current)
        if self._finished:
            self._write(self._finished)
        if current:
            self._write([current])
        self._finished, self._waiting_bytes = [], 0

    def make_room(self) -> None:
        """Write the loops that ended if they take much memory or are many."""
        if self._waiting_bytes > MOST_BYTES or len(self._finished) >= MOST_LOOPS:
            self.save()

    def _drop_nested(self, mark: Mark) -> None:
        """Forget the loops that ended in the body of another one.

        Its state goes on from them.
        """
        while self._finished and self._finished[-1].number > mark.number:
            self._waiting_bytes -= self._finished.pop().nbytes

    def _write(self, marks: Sequence[Mark]) -> None:
        arrays: dict[str, Any] = {}
        for mark in marks:
            arrays |= mark.arrays()
        facts = {
            "fingerprint": self._fingerprint,
            "loops": [mark.facts() for mark in marks],
        }
        path = self._folder.checkpoint_path(self._condition, marks[0].number)
        checkpoint_files.save_arrays(path, arrays, facts)

    def _read(self, loop: Loop) -> None:
        path = self._folder.checkpoint_path(self._condition, loop.number)
        if not path.exists():
            return
        try:
            arrays, facts = checkpoint_files.load_arrays(path, self._fingerprint)
        except UnusableCheckpoint as reason:
            self._on_note(
                f"The checkpoint {path} is not used: {reason}. The {loop} "
                "starts from step 0."
            )
            return
        for one in facts["loops"]:
            self._found[one["number"]] = Mark.of(one, arrays)

    def _forget_from(self, number: int) -> None:
        """Forget the loops from this number on, and delete their checkpoints.

        The loop of this number is another one now, and what came after it belonged to
        the old one's results.
        """
        self._found.clear()
        for path in self._folder.checkpoints(self._condition):
            place = path.stem.rpartition("-")[2]
            if (
                path.suffix == ".safetensors"
                and place.isdigit()
                and int(place) >= number
            ):
                path.unlink(missing_ok=True)


def check_total(total: Any) -> int:
    """Check a number of steps and return it.

    Raises:
        UsageError: It is not a whole number, or is below 0.
    """
    try:
        steps = operator.index(total)
    except TypeError:
        raise UsageError(
            f"lab.steps takes a whole number of steps, not {total!r}."
        ) from None
    if steps < 0:
        raise UsageError(f"lab.steps takes 0 or more steps, not {steps:,}.")
    return steps


def check_state(state: Any) -> None:
    """Refuse what cannot be saved before any step is taken.

    Raises:
        UsageError: With the entry that cannot be saved.
    """
    if state is not None:
        states.take(state, copies=False)
