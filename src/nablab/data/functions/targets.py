r"""One-input, one-output functions to learn.

Known ones by name, and any expression of x.

A target is written ``NAME`` or ``EXPRESSION``, then optionally ``@LOW..HIGH`` and
``@POINTS``::

    sinc                    a known target on its own domain
    sinc@-1.5..1.5@600      the same, elsewhere and denser
    x*sin(x)                an expression on -1..1 with 300 points
    x*sin(x)@-pi..pi@400    bounds may be expressions too

==================  ==============================  ==============  =========
name                function                        domain          points
==================  ==============================  ==============  =========
``sinc``            sin(5πx)/(5πx), 1 at x = 0      -1 to 1         300
``sign_sin``        sign(sin(5πx)), 0 at a jump     -1 to 1         300
``quadratic_sine``  sin(x) + x²                     -2 to 2         4,000
``sine_plus_x``     sin(x) + x                      1 to 10         100,000
``cosine_over_x``   cos(x)/x                        1 to 5          2,000
``sawtooth``        the tent map composed 4 times   0 to 1          257
``sawtooth-K``      the tent map composed K times   0 to 1          16·2^K + 1
==================  ==============================  ==============  =========
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nablab.data.functions.expressions import Array, Function, parse_expression
from nablab.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

MOST_POINTS = 1_000_000
DEEPEST_SAWTOOTH = 16
# Adam on a few hundred parameters learns 8 pieces and mostly fails at 32; 16 tell
# networks apart.
DEFAULT_SAWTOOTH = 4
# enough to see each straight piece of a sawtooth, and a power of two: exact in binary
POINTS_PER_PIECE = 16


@dataclass(frozen=True)
class Target:
    """A function on an interval, with training points and held-out points between them.

    Attributes:
        name: What the user wrote.
        formula: The function in words that a legend can hold.
        low: The left end of the domain.
        high: The right end of the domain.
        points: Number of training points, evenly spaced, both ends included.
        function: The function itself, on float64 arrays.
    """

    name: str
    formula: str
    low: float
    high: float
    points: int
    function: Function

    def truth(self, x: npt.ArrayLike) -> Array:
        """Compute the exact values in float64, in the shape of ``x``."""
        return self.function(np.asarray(x, dtype=np.float64))

    def grid(self, points: int | None = None) -> Array:
        """Return the training inputs in float64, shape (N,).

        Args:
            points: Number of points, instead of the target's own.
        """
        return np.linspace(self.low, self.high, points or self.points)

    def midpoints(self, points: int | None = None) -> Array:
        """Return the held-out inputs in float64, shape (N-1,).

        They lie midway between neighboring training inputs.

        Args:
            points: Number of training points, instead of the target's own.
        """
        grid = self.grid(points)
        return (grid[:-1] + grid[1:]) / 2

    def train(self, points: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the training set: x and y, float32, shape (N, 1).

        Args:
            points: Number of points, instead of the target's own.
        """
        return self._tensors(self.grid(points))

    def held_out(self, points: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the held-out set: x and y, float32, shape (N-1, 1).

        Args:
            points: Number of training points, instead of the target's own.
        """
        return self._tensors(self.midpoints(points))

    def _tensors(self, x: Array) -> tuple[Tensor, Tensor]:
        import torch

        y = self.truth(x)
        return torch.from_numpy(x).float()[:, None], torch.from_numpy(y).float()[
            :, None
        ]

    def check(self) -> Target:
        """Return self if the function has a value at every training and held-out point.

        Raises:
            UsageError: It has none somewhere, or one that float32 cannot hold; names
                the x.
        """
        x = np.sort(np.concatenate([self.grid(), self.midpoints()]))
        y = self.truth(x)
        bad = ~(np.abs(y) <= np.finfo(np.float32).max)
        if bad.any():
            raise UsageError(
                f"'{self.name}' is {y[bad][0]:g} at x = {x[bad][0]:g} ({bad.sum()} of "
                f"{x.size} points have no usable value). Choose a domain without such "
                f"points: {self.name.split('@')[0]}@LOW..HIGH."
            )
        return self


def _sinc(x: Array) -> Array:
    return np.asarray(np.sinc(5 * x), dtype=np.float64)


def _sign_sin(x: Array) -> Array:
    # sin(5πx) in floating point is 1e-16, not 0, at its zeros, and its sign there is
    # noise. 5x modulo 2 is exact, and says on which side of a jump x lies.
    phase = np.mod(5 * x, 2.0)
    return np.where(phase == np.floor(phase), 0.0, np.where(phase < 1, 1.0, -1.0))


def tent(x: Array) -> Array:
    """Compute the tent map, 2x up to 1/2 and 2 - 2x after it.

    Exact in binary floating point on [0, 1].
    """
    return np.where(x <= 0.5, 2 * x, 2 - 2 * x)


def sawtooth(depth: int) -> Function:
    """Compose the tent map ``depth`` times on [0, 1].

    It has 2^(depth-1) teeth (points where it reaches 1) and 2^depth straight pieces. A
    ReLU network with ``depth`` hidden layers of 2 units equals it
    (`nablab.models.sawtooth_network`); one hidden layer needs at least 2^depth - 1
    units, because n units make at most n + 1 pieces. Telgarsky, "Benefits of depth in
    neural networks", COLT 2016, arXiv:1602.04485.
    """

    def function(x: Array) -> Array:
        for _ in range(depth):
            x = tent(x)
        return x

    return function


_KNOWN = {
    target.name: target
    for target in (
        Target("sinc", "sin(5πx)/(5πx)", -1.0, 1.0, 300, _sinc),
        Target("sign_sin", "sign(sin 5πx)", -1.0, 1.0, 300, _sign_sin),
        Target(
            "quadratic_sine",
            "sin(x) + x²",
            -2.0,
            2.0,
            4_000,
            lambda x: np.sin(x) + x**2,
        ),
        Target(
            "sine_plus_x", "sin(x) + x", 1.0, 10.0, 100_000, lambda x: np.sin(x) + x
        ),
        Target("cosine_over_x", "cos(x)/x", 1.0, 5.0, 2_000, lambda x: np.cos(x) / x),
    )
}

TARGETS = (*_KNOWN, "sawtooth")


def sawtooth_depth(name: str) -> int | None:
    """Count the compositions of a sawtooth target; None for any other target.

    >>> [sawtooth_depth(name) for name in ("sawtooth-7", "sawtooth@0..0.5", "sinc")]
    [7, 4, None]
    """
    found = re.fullmatch(r"sawtooth(?:-(\d{1,4}))?", name.partition("@")[0].strip())
    return int(found[1] or DEFAULT_SAWTOOTH) if found else None


def target(spec: str) -> Target:
    """Return the target that ``spec`` names.

    ``spec`` is a known name or an expression, with ``@LOW..HIGH`` and ``@POINTS``.

    Args:
        spec: Such as ``sinc``, ``sawtooth-3`` or ``sin(x)*x@-3..3@50``.

    Raises:
        UsageError: An unknown name, a bad expression, domain or number of points,
            or a function without a value somewhere on its points.

    >>> target("sin(x)*x@-3..3@50").train()[0].shape
    torch.Size([50, 1])
    """
    text, *modifiers = (part.strip() for part in spec.split("@"))
    result = _base(text)
    for modifier in modifiers:
        result = _modified(result, modifier, spec)
    return dataclasses.replace(result, name=spec.strip()).check()


def _base(text: str) -> Target:
    depth = sawtooth_depth(text)
    if depth is not None:
        if not 1 <= depth <= DEEPEST_SAWTOOTH:
            raise UsageError(
                f"'{text}' is out of range: sawtooth-1 to "
                f"sawtooth-{DEEPEST_SAWTOOTH} exist."
            )
        points = POINTS_PER_PIECE * 2**depth + 1
        return Target(
            text, f"tent map, {depth} times", 0.0, 1.0, points, sawtooth(depth)
        )
    if text in _KNOWN:
        return _KNOWN[text]
    if re.fullmatch(r"[A-Za-z_]\w*", text) and text not in ("x", "pi", "e"):
        raise unknown(
            "target",
            text,
            TARGETS,
            remedy="Or write an expression of x, such as x*sin(x)@-3..3@300.",
        )
    return Target(text, text, -1.0, 1.0, 300, parse_expression(text))


def _modified(base: Target, modifier: str, spec: str) -> Target:
    if ".." in modifier:
        low, _, high = modifier.partition("..")
        bounds = [_constant(side, spec) for side in (low, high)]
        if not bounds[0] < bounds[1]:
            raise UsageError(
                f"The domain {modifier} of '{spec}' is empty: the left end must be the "
                "smaller one."
            )
        return dataclasses.replace(base, low=bounds[0], high=bounds[1])
    if (
        not re.fullmatch(r"\d[\d_]{0,9}", modifier)
        or not 2 <= int(modifier) <= MOST_POINTS
    ):
        raise UsageError(
            f"'@{modifier}' in '{spec}' is neither a domain such as @-3..3 nor a "
            f"number of points from 2 to {MOST_POINTS:,} such as @300."
        )
    return dataclasses.replace(base, points=int(modifier))


def _constant(text: str, spec: str) -> float:
    function: Callable[[Array], Array] = parse_expression(text)
    values = function(np.array([0.0, 1.0]))
    if not np.isfinite(values).all() or values[0] != values[1]:
        raise UsageError(
            f"'{text.strip()}' is not an end of a domain in '{spec}'. Write numbers: "
            "@-3..3 or @-pi..pi."
        )
    return float(values[0])
