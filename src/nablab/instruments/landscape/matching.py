r"""Bring the hidden units of two networks of one architecture into one order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from nablab.errors import UsageError, unknown
from nablab.instruments.base.batches import read_batches, tensors_in
from nablab.instruments.base.losses import call, split
from nablab.instruments.base.measurement import Expected, Measurement, instrument
from nablab.instruments.base.placement import copied
from nablab.instruments.base.rehearsals import Call, Trial, Trials, by_trials
from nablab.instruments.landscape.permutations import (
    Permutations,
    Specification,
    find_specification,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["weights", "activations"]
Orders = dict[str, npt.NDArray[np.int64]]

UNCHECKED = (
    "Whether the new network is the same function was not checked: it is if the "
    "specification lists all that belongs to a unit. Give data, and the outputs are "
    "compared."
)
SWEEPS = (
    "How many sweeps a start takes is known only when it ends. The estimate is for "
    "independent networks."
)
# The relative distance of outputs in float64; a permutation changes the order of sums
# only.
SAME = 1e-9
COLORS = {"before": "#767676", "after": "#0072b2"}


@dataclass(frozen=True, kw_only=True)
class Matching(Measurement):
    r"""What `match_units` found. Distances are over all parameters, hidden or not.

    Attributes:
        permutations: By group of units: int64 (n,); unit i of the new network was unit
            ``permutations[g][i]`` of ``model_b``.
        module: A new network, equal in function to ``model_b``, with its units in the
            order of ``model_a``.
        method: ``"weights"`` or ``"activations"``.
        distance_before: Euclidean distance of the weights of ``model_b`` from those of
            ``model_a``.
        distance_after: The distance of the new network's weights.
        similarity_before: Cosine of the angle between the two weight vectors.
        similarity_after: The cosine for the new network.
        distances: By parameter: the distance before and after.
        sweeps: Sweeps over all groups in the best start.
        converged: A whole sweep changed nothing, so that no reordering of a single
            group improves the match. That is a local optimum: the best of all orders
            cannot be found in polynomial time.
        start: The best start: ``identity``, ``forward``, ``backward`` or ``random``;
            with the other method, ``activations``.
    """

    permutations: Orders
    module: nn.Module = field(repr=False)
    method: Method
    distance_before: float
    distance_after: float
    similarity_before: float
    similarity_after: float
    distances: dict[str, tuple[float, float]]
    sweeps: int
    converged: bool
    start: str
    _plan: Permutations = field(repr=False)

    def permute(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Reorder the units in tensors of ``model_b``, of any time of its training.

        Args:
            tensors: By name, such as a state dict; names that are not of the model are
                an error.
        """
        return self._plan.apply(dict(tensors), self.permutations)

    def plot(self) -> Figure:
        """Plot every parameter's distance from its counterpart, before and after."""
        from matplotlib.figure import Figure

        names = list(self.distances)
        figure = Figure(figsize=(5.6, 1.4 + 0.28 * len(names)), layout="constrained")
        ax = figure.subplots()
        for place, (before, after) in enumerate(self.distances.values()):
            ax.plot(
                [before, after], [place, place], color=COLORS["before"], lw=1, zorder=1
            )
        for which, label in enumerate(COLORS):
            x = [pair[which] for pair in self.distances.values()]
            ax.plot(x, range(len(names)), "o", color=COLORS[label], ms=6, label=label)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set_xlim(left=0)
        ax.set_xlabel("distance between the networks' weights")
        ax.set_ylabel("parameter")
        ax.set_title(f"matched by {self.method}", loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
        return figure


def _expected(size: Any, *, method: str = "weights", **_: Any) -> Expected:
    # Two forward passes, a third of a gradient each, for activations, and two that
    # compare the functions on the first batch, which may be all data; float64 copies of
    # both networks.
    return Expected(
        gradients=4 / 3 if method == "activations" else 0.0,
        numbers=4.0 * size.parameters,
    )


def _trials(call: Call) -> Trials:
    """Return trials with the starts that are not random.

    Matching activations has no starts.
    """
    if call.options["method"] == "activations":
        return Trials((1,), (Trial((1,)),))
    restarts = call.options["restarts"]
    few = Trial((3,), {"restarts": min(0, restarts)})  # what is impossible is refused
    return Trials((3 + restarts,), (few,), notes=(SWEEPS,))


def _arguments(asked: Call, data: Any) -> tuple[Any, ...]:
    """Return the network and another, as far away as independent training leads."""
    other = copied(asked.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.square().mean().sqrt() * drawn.to(parameter))
    return asked.model, other, data


@instrument(expected=_expected, rehearse=by_trials(_trials, _arguments))
def match_units(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Any = None,
    *,
    method: Method = "weights",
    specification: Specification | None = None,
    seed: int = 0,
    restarts: int = 3,
    sweeps: int = 100,
) -> Matching:
    r"""Permute the hidden units of ``model_b`` to bring it close to ``model_a``.

    Hidden units have no order of their own: permuting the units of a layer together
    with the columns of the next one changes no output. Two networks may be far apart in
    weight space because their units are listed in different orders. With
    ``method="weights"`` the permutations :math:`\pi` minimize :math:`\|\theta_a -
    \pi(\theta_b)\|^2`, one layer at a time: with the other layers held, the best order
    of one layer is a linear assignment problem, solved exactly. Layers take turns in
    random order until a sweep changes nothing. As this ends in a local optimum, several
    starts are tried and the best is kept: the order as it is, orders found layer by
    layer from the input and from the output, and random ones. With
    ``method="activations"`` the inner products of the units' activations on ``data``
    are maximized instead, each layer by itself.

    Only the order of units is matched. The other symmetries, rescaling of ReLU units
    and signs of tanh units, are left as they are, so equal functions may still be
    apart.

    Source: Ainsworth, Hayase and Srinivasa, "Git Re-Basin: merging models modulo
    permutation symmetries", ICLR 2023, arXiv:2209.04836, sections 3.1 and 3.2.

    Args:
        model_a: The network that gives the order. Neither network is changed.
        model_b: The network to be reordered, of the same architecture.
        data: A tensor of inputs, a batch ``(inputs, targets)``, or an iterable of such
            batches. Targets are not used. With them the outputs of the new network are
            compared with those of ``model_b``; ``method="activations"`` needs them.
        method: ``"weights"`` or ``"activations"``.
        specification: By group of units, the ``(parameter, axis)`` pairs that list
            these units. Found automatically for `nn.Sequential` of linear and
            convolutional layers, batch norm, activations, pooling and flattening;
            needed for other models. Give ``data`` beside your own, as a parameter that
            it forgets makes the new network another function.
        seed: Of the order of layers and of the random starts.
        restarts: Random starts beside the three others.
        sweeps: At most, in each start.

    Raises:
        UsageError: Different architectures (parameter and shapes named), weights that
            are NaN, a model whose units cannot be found without a specification, a
            specification that changes the function, or data missing for activations.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> a, b = network(), network()
    >>> result = match_units(a, b)
    >>> result.distance_after <= result.distance_before
    True
    >>> x = torch.randn(5, 2)
    >>> torch.allclose(result.module(x), b(x), atol=1e-6)
    True
    """
    if method not in get_args(Method):
        raise unknown("method", str(method), get_args(Method))
    if restarts < 0 or sweeps < 1:
        raise UsageError(
            f"restarts={restarts}, sweeps={sweeps}: give 0 restarts or more and 1 "
            "sweep or more."
        )
    a, b = _weights(model_a), _weights(model_b)
    _check_alike(a, b)
    plan = Permutations(model_b, specification or find_specification(model_b))
    batches = None if data is None else _inputs(model_b, data)
    if method == "weights":
        search = _Search(plan, a, b, np.random.default_rng(seed), sweeps)
        orders, taken, converged, start = search.best(restarts)
    else:
        orders = _by_activations(model_a, model_b, batches, plan)
        taken = 1
        converged = True
        start = method
    # The groups are in the order of the layers again.
    orders = {group: orders[group] for group in plan.sizes}
    module = copied(model_b)
    _load(
        module,
        plan.apply(
            {**dict(model_b.named_parameters()), **dict(model_b.named_buffers())},
            orders,
        ),
    )
    after = plan.apply(b, orders)
    if batches is not None:
        _check_function(model_b, module, batches[0])
    passes = 2.0 * (method == "activations") + (
        2 / len(batches) if batches is not None else 0.0
    )
    return Matching(
        gradients=passes / 3,
        notes=() if batches is not None or specification is None else (UNCHECKED,),
        permutations=orders,
        module=module,
        method=method,
        distance_before=_norm({name: a[name] - b[name] for name in a}),
        distance_after=_norm({name: a[name] - after[name] for name in a}),
        similarity_before=_cosine(a, b),
        similarity_after=_cosine(a, after),
        distances={
            n: (float((a[n] - b[n]).norm()), float((a[n] - after[n]).norm())) for n in a
        },
        sweeps=taken,
        converged=converged,
        start=start,
        _plan=plan,
    )


class _Search:
    """Coordinate descent over the groups, from several starts."""

    def __init__(
        self,
        plan: Permutations,
        a: dict[str, Tensor],
        b: dict[str, Tensor],
        draw: np.random.Generator,
        sweeps: int,
    ) -> None:
        self._plan = plan
        self._a = a
        self._b = b
        self._draw = draw
        self._sweeps = sweeps
        self._rounding = 1e-12 * _norm(a) * _norm(b)

    def best(self, restarts: int) -> tuple[Orders, int, bool, str]:
        """Return the orders with the largest inner product of weights.

        The others returned are its sweeps, convergence and start.
        """
        found = []
        for name, start in self._starts(restarts):
            orders, taken, converged = self._descend(start)
            found.append((self._value(orders), orders, taken, converged, name))
        return max(found, key=lambda item: item[0])[1:]

    def _starts(self, restarts: int) -> Iterator[tuple[str, Orders]]:
        sizes = self._plan.sizes
        yield "identity", {group: np.arange(n) for group, n in sizes.items()}
        yield "forward", self._greedy(list(sizes))
        yield "backward", self._greedy(list(sizes)[::-1])
        for _ in range(restarts):
            yield (
                "random",
                {group: self._draw.permutation(n) for group, n in sizes.items()},
            )

    def _greedy(self, groups: list[str]) -> Orders:
        """Order groups in turn, by the weights whose other units are ordered."""
        orders: Orders = {}
        for group in groups:
            benefit = self._plan.benefit(group, self._a, self._b, orders)
            orders[group] = _assign(benefit)
        return orders

    def _descend(self, orders: Orders) -> tuple[Orders, int, bool]:
        for sweep in range(1, self._sweeps + 1):
            changed = False
            for group in self._draw.permutation(list(self._plan.sizes)).tolist():
                benefit = self._plan.benefit(group, self._a, self._b, orders)
                order = _assign(benefit)
                if self._gain(group, benefit, orders, order) > self._rounding:
                    orders, changed = {**orders, group: order}, True
            if not changed:
                return orders, sweep, True
        return orders, self._sweeps, False

    def _gain(
        self, group: str, benefit: Tensor, orders: Orders, order: npt.NDArray[np.int64]
    ) -> float:
        """Return how much the value rises with a new order of one group."""
        if group in self._plan.quadratic:  # the group is on both axes of a weight
            return self._value({**orders, group: order}) - self._value(orders)
        rows = np.arange(len(order))
        return float(benefit[rows, order].sum() - benefit[rows, orders[group]].sum())

    def _value(self, orders: Orders) -> float:
        permuted = self._plan.apply(self._b, orders)
        return sum(
            float((self._a[name] * permuted[name]).sum()) for name in self._plan.touched
        )


def _assign(benefit: Tensor) -> npt.NDArray[np.int64]:
    rows, columns = linear_sum_assignment(benefit.numpy(), maximize=True)
    return np.asarray(columns[np.argsort(rows)], dtype=np.int64)


def _by_activations(
    model_a: nn.Module,
    model_b: nn.Module,
    inputs: Sequence[Any] | None,
    plan: Permutations,
) -> Orders:
    if inputs is None:
        raise UsageError(
            "method='activations' needs data: give inputs as the third argument."
        )
    totals = {
        group: torch.zeros(n, n, dtype=torch.float64) for group, n in plan.sizes.items()
    }
    networks = [_quiet_copy(model) for model in (model_a, model_b)]
    for batch in inputs:
        first, second = (_activations(network, batch, plan) for network in networks)
        for group, total in totals.items():
            total += first[group] @ second[group].T
    bad = [group for group, total in totals.items() if not bool(total.isfinite().all())]
    if bad:
        raise UsageError(
            f"The activations of '{bad[0]}' are NaN or infinite on these data."
        )
    return {group: _assign(total) for group, total in totals.items()}


def _inputs(model: nn.Module, data: Any) -> list[Any]:
    """Return the inputs of every batch, float64, where the model is."""
    device = next(model.parameters()).device
    batches = read_batches(data, device=device, dtype=torch.float64).items
    return [
        split(batch)[0] if isinstance(batch, tuple | list) else batch
        for batch in batches
    ]


def _check_function(model: nn.Module, permuted: nn.Module, inputs: Any) -> None:
    """Raise `UsageError` if reordering units has changed what the network computes."""
    before = _outputs(_quiet_copy(model), inputs)
    after = _outputs(_quiet_copy(permuted), inputs)
    if not all(bool(one.isfinite().all()) for one in before):
        raise UsageError(
            "The outputs of model_b are NaN or infinite on these data. "
            "Give other inputs."
        )
    apart = max(
        (
            float((one - other).abs().max())
            for one, other in zip(before, after, strict=True)
        ),
        default=0.0,
    )
    size = max((float(one.abs().max()) for one in before), default=0.0)
    if not apart <= SAME * max(size, 1e-300):
        raise UsageError(
            "The specification makes another function of the network: on the first "
            f"batch outputs differ by up to {apart:.3g}, with outputs up to "
            f"{size:.3g}. It leaves out a parameter or buffer that lists units, or "
            "holds one that does not: list for each group all axes along its units."
        )


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = tensors_in(call(model, inputs))
    return [tensor for tensor in found if tensor.is_floating_point() and tensor.numel()]


def _quiet_copy(model: nn.Module) -> nn.Module:
    """Return a copy to run, without dropout or statistics of the batch.

    Hooks stay on the copy.
    """
    return copied(model).double().eval()


def _activations(
    model: nn.Module, inputs: Any, plan: Permutations
) -> dict[str, Tensor]:
    """Return the outputs of the units by group, float64 (n, samples and places)."""
    found: dict[str, Tensor] = {}
    handles = []
    for group, name in plan.sources().items():
        layer = model.get_submodule(name)
        axis = 1 if hasattr(layer, "kernel_size") else -1

        def keep(
            _: nn.Module, __: Any, output: Tensor, group: str = group, axis: int = axis
        ) -> None:
            found[group] = output.detach().movedim(axis, 0).flatten(1).cpu()

        handles.append(layer.register_forward_hook(keep))
    _outputs(model, inputs)
    for handle in handles:
        handle.remove()
    return found


def _weights(model: nn.Module) -> dict[str, Tensor]:
    found = {
        name: tensor.detach().double().cpu()
        for name, tensor in model.named_parameters()
    }
    for name, tensor in found.items():
        if not bool(tensor.isfinite().all()):
            raise UsageError(
                f"The parameter '{name}' holds values that are NaN or infinite: the "
                "model has diverged."
            )
    return found


def _check_alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in [*a, *b]:
        shapes = [
            tuple(own[name].shape) if name in own else "no such parameter"
            for own in (a, b)
        ]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"The networks differ in '{name}': {shapes[0]} and {shapes[1]}. Units "
                "can be matched only between networks of one architecture."
            )


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, target in [*module.named_parameters(), *module.named_buffers()]:
            target.copy_(tensors[name])


def _norm(tensors: dict[str, Tensor]) -> float:
    return float(
        torch.stack([tensor.square().sum() for tensor in tensors.values()]).sum().sqrt()
    )


def _cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    product = sum(float((a[name] * b[name]).sum()) for name in a)
    return product / max(_norm(a) * _norm(b), np.finfo(np.float64).tiny)
