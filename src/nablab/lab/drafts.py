"""Records while they are being made: what an experiment said of each trial so far."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nablab.contract import Curve
from nablab.errors import UsageError
from nablab.lab.kept_weights import Packed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Log:
    """A curve that grows point by point.

    Args:
        last: The step of the latest point that is kept elsewhere; the next one must be
            later.
    """

    def __init__(self, last: int = -1) -> None:
        self.last = last
        # compact: a run may log millions of points
        self._steps, self._values = (array("q"), array("d"))

    def add(self, step: int, value: float) -> None:
        """Add a point after all others.

        Raises:
            UsageError: There is a point of this or a later step.
        """
        if step <= self.last:
            raise UsageError(
                f"step {step} cannot come after step {self.last}. Steps of a curve "
                "count up from 0; give what starts over another name"
            )
        self._values.append(value)
        self._steps.append(step)
        self.last = step

    def extend(self, later: Log) -> None:
        """Add the points of a log that went on from this one."""
        self._steps.extend(later._steps)
        self._values.extend(later._values)
        self.last = later.last

    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return copies of the steps and the values."""
        import numpy as np

        return np.array(self._steps, dtype=np.int64), np.array(
            self._values, dtype=np.float64
        )

    @classmethod
    def of(cls, steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Log:
        """Make a log again from what `arrays` returned."""
        log = cls()
        log._steps.frombytes(steps.tobytes())
        log._values.frombytes(values.tobytes())
        log.last = log._steps[-1]
        return log


@dataclass
class Draft:
    """What was said of one trial so far.

    Its other attributes are those of a `nablab.contract.Record`.

    Attributes:
        logs: Curves that are being logged.
        trained: Weights that trainings left; those in ``weights`` were given by the
            experiment.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, Log] = field(default_factory=dict)
    weights: dict[str, Packed] = field(default_factory=dict)
    trained: dict[str, Packed] = field(default_factory=dict)
    weights_left_out: dict[str, int] = field(default_factory=dict)

    def add(self, later: Draft) -> None:
        """Take over what was said later."""
        self.scalars |= later.scalars
        self.notes |= later.notes
        self.curves |= later.curves
        self.arrays |= later.arrays
        self.weights |= later.weights
        self.trained |= later.trained
        self.weights_left_out |= later.weights_left_out
        for name, log in later.logs.items():
            if name in self.logs:
                self.logs[name].extend(log)
            else:
                self.logs[name] = log

    def all_curves(self) -> dict[str, Curve]:
        """Return the curves that were given as a whole, and those that were logged.

        Raises:
            UsageError: Two of them have the same name.
        """
        twice = sorted(self.curves.keys() & self.logs.keys())
        if twice:
            raise UsageError(
                f"'{twice[0]}' was given to lab.curve and to lab.log. Each curve needs "
                "a name of its own."
            )
        return self.curves | {
            name: Curve(*log.arrays()) for name, log in self.logs.items()
        }

    def all_weights(self) -> dict[str, Packed]:
        """Return what trainings left and what the experiment gave.

        Where both have a name, the experiment's weights count.
        """
        return self.trained | self.weights


Drafts = dict[int, Draft]  # by the place of the trial in its call of `Experiment.run`


def plain(drafts: Mapping[int, Draft]) -> dict[int, Any]:
    """Turn drafts into mappings, lists, numbers, texts and arrays."""
    return {
        place: {
            "scalars": draft.scalars,
            "notes": draft.notes,
            "curves": {name: list(curve) for name, curve in draft.curves.items()},
            "arrays": draft.arrays,
            "logs": {name: list(log.arrays()) for name, log in draft.logs.items()},
            "weights": {
                name: _as_array(packed) for name, packed in draft.weights.items()
            },
            "trained": {
                name: _as_array(packed) for name, packed in draft.trained.items()
            },
            "weights_left_out": draft.weights_left_out,
        }
        for place, draft in drafts.items()
    }


def from_plain(drafts: Mapping[int, Any]) -> Drafts:
    """Make drafts again from what `plain` returned."""
    return {
        place: Draft(
            scalars=draft["scalars"],
            notes=draft["notes"],
            curves={name: Curve(*curve) for name, curve in draft["curves"].items()},
            arrays=draft["arrays"],
            logs={name: Log.of(*log) for name, log in draft["logs"].items()},
            # Earlier versions saved loops without these fields.
            weights={
                name: Packed(array.tobytes())
                for name, array in draft.get("weights", {}).items()
            },
            trained={
                name: Packed(array.tobytes())
                for name, array in draft.get("trained", {}).items()
            },
            weights_left_out=draft.get("weights_left_out", {}),
        )
        for place, draft in drafts.items()
    }


def _as_array(packed: Packed) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(packed.content, dtype=np.uint8)


def last_step(layers: Iterable[Mapping[int, Draft]], place: int, name: str) -> int:
    """Return the latest step of a logged curve in any layer; -1 if there is none."""
    logs = [
        layer[place].logs[name]
        for layer in layers
        if place in layer and name in layer[place].logs
    ]
    return max((log.last for log in logs), default=-1)
