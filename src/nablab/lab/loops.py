"""The loops of an experiment's own in a real run.

Between two steps they show how far they are, stop if asked to, and save.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from nablab.contract import Trials
from nablab.errors import Interrupted, UsageError
from nablab.lab.drafts import Draft, Drafts
from nablab.lab.loop_files import Loop, LoopFiles, check_state, check_total
from nablab.lab.stop import StopToken
from nablab.lab.store import RunFolder

# between two looks at the request to stop: such a reaction feels prompt to a person
LOOK_SECONDS = 0.2
# a loop works this many times as long as its last save took, however large its state is
SAVING_SHARE = 20


class OwnLoops:
    """The loops of some trials, one after the other or one in another.

    What an experiment says in a loop's body is kept with the loop, since a loop that is
    taken up again does not say it again; when the loop ends, it is added to what was
    said around it.

    Args:
        folder: The run.
        trials: What is run.
        drafts: What is said outside all loops, by the place of the trial.
        stop: The request to stop, to be checked.
        every_seconds: How often to save.
        on_note: Told what was chosen automatically.
        on_progress: Told the step, the number of steps and the steps per second, about
            every 0.2 s.
        on_save: Called before an unfinished loop is saved, to save what else belongs
            to that moment.
    """

    def __init__(
        self,
        folder: RunFolder,
        trials: Trials,
        drafts: Drafts,
        *,
        stop: StopToken,
        every_seconds: float,
        on_note: Callable[[str], None],
        on_progress: Callable[[int, int, float], None],
        on_save: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = LoopFiles(folder, trials.condition, trials.seeds, on_note)
        self._drafts, self._stop, self._every = drafts, stop, every_seconds
        self._on_progress, self._on_save = on_progress, on_save
        self._open: list[Loop] = []  # the innermost last
        self._begun = 0
        # of all loops together: a short one may end before it would look
        self._look_at = 0.0
        self._save_at = time.monotonic() + every_seconds

    @property
    def begun(self) -> int:
        """How many loops and trainings have begun."""
        return self._begun

    def next_number(self) -> int:
        """Return the number of a loop or training that begins."""
        self._begun += 1
        return self._begun - 1

    def save_ended(self) -> None:
        """Write the loops that ended since the last save."""
        self._files.save()

    def steps(self, total: int, *, state: Any, name: str) -> Iterator[int]:
        """See `nablab.contract.Lab.steps`."""
        loop = Loop(self._begun, check_total(total), name, state)
        check_state(state)
        if self._stop.requested():
            self._files.save()
            raise Interrupted(f"stopped before {loop}")
        self._begun += 1
        self._files.make_room()
        mark = None if state is None else self._files.find(loop)
        self._open.append(loop)
        if mark is not None:
            loop.go_on(mark)
            self._begun = mark.following
            if mark.done:
                self._close(loop)
                return iter(())
        return self._walk(loop)

    def draft(self, place: int) -> Draft:
        """Return where to keep what is said of the trial at a place now."""
        said = self._open[-1].said if self._open else self._drafts
        if place not in said:
            said[place] = Draft()
        return said[place]

    def layers(self) -> list[Drafts]:
        """Return everything that was said so far, the latest last."""
        return [self._drafts, *(loop.said for loop in self._open)]

    def close_all(self) -> None:
        """Put together what was said; some iterators may still be open."""
        while self._open:
            self._close(self._open[-1])

    def _walk(self, loop: Loop) -> Iterator[int]:
        clock, look_at, step = time.monotonic, self._look_at, loop.step
        loop.looked = step, clock()
        try:
            for step in range(loop.step, loop.total):
                yield step
                # A look at the clock costs 0.05 microseconds. To look only after a
                # number of steps would cost less, but then one slow step after many
                # fast ones could keep a request to stop waiting.
                if clock() >= look_at:
                    look_at = self._look(loop, step + 1)
        except GeneratorExit:
            # The loop was left by `break` or by an error. It is over in both cases, and
            # that is written only if the experiment goes on to another loop. Nobody
            # would see an error about the state now.
            with contextlib.suppress(UsageError):
                self._end(loop, step)
            self._close(loop)
            raise
        self._end(loop, loop.total)
        self._close(loop)

    def _look(self, loop: Loop, step: int) -> float:
        """Show, stop or save between two steps; return when to look again."""
        now = time.monotonic()
        earlier, then = loop.looked
        self._on_progress(step, loop.total, (step - earlier) / max(now - then, 1e-9))
        loop.looked = step, now
        if self._stop.requested():
            self._save(loop, step)
            goes_on = (
                "it goes on from there"
                if loop.state is not None
                else "without a state it starts over"
            )
            raise Interrupted(
                f"Stopped in {loop} at step {step:,} of {loop.total:,}; {goes_on}."
            )
        if now >= self._save_at:
            self._save(loop, step)
            after = time.monotonic()
            self._save_at = after + max(self._every, SAVING_SHARE * (after - now))
        self._look_at = time.monotonic() + LOOK_SECONDS
        return self._look_at

    def _save(self, loop: Loop, step: int) -> None:
        self._close_inner(loop)
        self._on_save()
        if loop.state is None:
            self._files.save()
        else:
            self._files.save(loop.mark(step, done=False, following=self._begun))

    def _end(self, loop: Loop, step: int) -> None:
        self._close_inner(loop)
        if loop.state is not None:
            self._files.finish(loop.mark(step, done=True, following=self._begun))

    def _close_inner(self, loop: Loop) -> None:
        """Close what began in a loop's body and was neither ended nor dropped.

        A loop that a ``zip`` went through may be left so.
        """
        while loop in self._open and self._open[-1] is not loop:
            self._close(self._open[-1])

    def _close(self, loop: Loop) -> None:
        """Add what a loop's body said to what was said around it."""
        if loop not in self._open:
            return
        place = self._open.index(loop)
        del self._open[place]
        around = self._open[place - 1].said if place else self._drafts
        for place, draft in loop.said.items():
            around.setdefault(place, Draft()).add(draft)
