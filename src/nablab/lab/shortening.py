"""How a dry run leaves out most of a loop, and estimates how long the whole would last.

The estimate has a clock that runs on as if all had been done: after each piece that was
cut short, the time that is missing is added. So pieces may be nested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean

# A dry run takes at least two steps of a loop, then a twentieth of all, but at most
# 0.3 s or 20 steps; if steps are so short that 20 of them could not be measured, it
# takes as many as fit into 0.05 s. It should cost at most a tenth of the run.
LOOP_SHARE = 20
ENOUGH_STEPS = 20
SHORTEST_SECONDS, LONGEST_SECONDS = 0.05, 0.3
BUDGET_SHARE = 16  # of what is given to a library


class Calls:
    """The calls of a library whose amount was cut, and what they would last uncut.

    Each call costs something whatever its amount: building, checking, scoring. So every
    second one gets an amount of 1, which lasts about that long, and the others a share,
    from which the time of one unit follows.

    Args:
        amount: The whole amount of each call.
    """

    def __init__(self, amount: int) -> None:
        self._amount, self._share = amount, max(min(2, amount), amount // BUDGET_SHARE)
        self._with_share: list[float] = []  # seconds of each call
        self._with_one: list[float] = []
        self.began = 0.0

    def next_amount(self) -> int:
        """Return the amount to give to the next call."""
        return self._share if len(self._with_share) <= len(self._with_one) else 1

    def add(self, seconds: float) -> None:
        """Note how long the call with `next_amount` took."""
        kind = (
            self._with_share
            if len(self._with_share) <= len(self._with_one)
            else self._with_one
        )
        kind.append(seconds)

    def missing(self) -> float:
        """Return how many seconds longer all calls so far would have lasted uncut."""
        if not self._with_share:
            return 0.0
        first, *later = self._with_share
        share = mean(later or [first])  # the first call may have to set something up
        if self._with_one and self._share > 1:
            one = mean(self._with_one)
            whole = one + max(0.0, share - one) * (self._amount - 1) / (self._share - 1)
        else:
            whole = share * self._amount / self._share
        calls = len(self._with_share) + len(self._with_one)
        warming_up = max(0.0, first - share)
        return calls * whole + warming_up - sum(self._with_share) - sum(self._with_one)


class Shortened:
    """The loops of an experiment and of libraries in a dry run.

    Args:
        clock: Seconds.
        now: The clock that runs on as if all had been done.
        add: Adds seconds that are missing to it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        now: Callable[[], float],
        add: Callable[[float], None],
    ) -> None:
        self._clock, self._now, self._add = clock, now, add
        self._calls: dict[int, Calls] = {}  # by amount
        self._running: Calls | None = None

    def steps(self, total: int) -> Iterator[int]:
        """Count a few steps."""
        self.end_call()
        return self._few(total)

    def budget(self, amount: int) -> int:
        """Return the share of a library's next call, which lasts until `end_call`."""
        self.end_call()
        self._running = self._calls.setdefault(amount, Calls(amount))
        self._running.began = self._now()
        return self._running.next_amount()

    def items(self, total: int, enough: int) -> Iterator[int]:
        """Count the first items, and add the time of the others.

        Each of those is taken to last as long as the last that was counted.

        Args:
            total: The number of items.
            enough: How many to count.
        """
        self.end_call()
        for place in range(total):
            began = self._now()
            yield place
            self.end_call()
            if place + 1 == enough:
                self._add((total - enough) * (self._now() - began))
                return

    def end_call(self) -> None:
        """Add what is missing of a library's call, if there is one under way."""
        calls, self._running = self._running, None
        if calls is None:
            return
        known = calls.missing()
        calls.add(self._now() - calls.began)
        # each call tells more of the earlier ones, too
        self._add(calls.missing() - known)

    def _few(self, total: int) -> Iterator[int]:
        began, taken = self._clock(), 0
        # steps and time at the last two powers of two
        earlier = latest = (0, self._now())
        for step in range(total):
            yield step
            self.end_call()
            taken = step + 1
            if not taken & step:
                earlier, latest = latest, (taken, self._now())
            if taken > 1 and _is_enough(taken, total, self._clock() - began):
                break
        if taken in (0, total):
            return  # nothing is missing
        # The first steps set up what later ones find, so they count, but they are not
        # typical.
        steps, then = earlier
        self._add((total - taken) * (self._now() - then) / (taken - steps))


def _is_enough(taken: int, total: int, seconds: float) -> bool:
    many = taken >= ENOUGH_STEPS and seconds >= SHORTEST_SECONDS
    return many or taken >= total / LOOP_SHARE or seconds >= LONGEST_SECONDS
