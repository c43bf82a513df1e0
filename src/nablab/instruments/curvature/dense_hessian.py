r"""The exact Hessian of dense networks, by units instead of by parameters.

A weight acts only through the unit that it feeds: with :math:`z_l = W_l a_{l-1} + b_l`
and :math:`a_l = \sigma_l(z_l)`, a step of :math:`W_{l,ij}` is a step of :math:`z_{l,i}`
times :math:`a_{l-1,j}`. So a network of 571 parameters and 61 units needs 61 tangents,
not 571. For one sample, let :math:`\delta_l = \partial\ell/\partial z_l`, let :math:`S`
be the second derivatives of the loss in steps added to the units, and :math:`J_{l}` the
derivative of :math:`a_l` in such steps. Then for :math:`l \ge m`

.. math:: \frac{\partial^2 \ell}{\partial W_{l,ij}\,\partial W_{m,pq}}
          = S_{(l,i),(m,p)}\, a_{l-1,j}\, a_{m-1,q} + \delta_{l,i}\, a_{m-1,q}\,
          J_{l-1,j,(m,p)}

and both sums over samples are products of matrices with a row for each pair of units.
:math:`S` comes from Pearlmutter's R-operator ("Fast exact multiplication by the
Hessian", Neural Computation 1994), one forward and one backward pass of all units'
tangents; the second term is there because :math:`W_l` also appears in the backward pass
(Bishop, "Exact calculation of the Hessian matrix for the multilayer perceptron", 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor, nn

# Modules that act on each number alone, without randomness. Only exact types count: a
# subclass may do else.
ELEMENTWISE = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
# Numbers in the tangents of one piece of work, 16 MB of float64. For 571 parameters and
# 300 samples, on one thread: 11.5 ms a network with half as many, 12.1 with these, 12.5
# with twice as many; on two threads 9.6, 7.9 and 7.9, for small pieces wait for
# Python's lock.
TANGENT_NUMBERS = 2**21

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DenseLayer:
    """One linear map and what is applied to its outputs.

    Attributes:
        weight: Name of its weight.
        bias: Name of its bias, or None.
        activations: Elementwise modules, in order.
    """

    weight: str
    bias: str | None
    activations: tuple[nn.Module, ...] = ()

    def activate(self, z: Tensor) -> Tensor:
        """Return the outputs of the layer."""
        for module in self.activations:
            z = module(z.clone() if getattr(module, "inplace", False) else z)
        return z


def dense_layers(module: nn.Module) -> tuple[DenseLayer, ...] | None:
    """Return the layers of a dense network, or None if ``module`` is anything else.

    Recognized are `torch.nn.Sequential`, also nested, of `torch.nn.Linear` and the
    modules of `ELEMENTWISE`, beginning with a linear one, without hooks and without
    shared parameters.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1, bias=False))
    >>> [layer.bias for layer in dense_layers(network)]
    ['0.bias', None]
    >>> dense_layers(nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1))) is None
    True
    """
    layers: list[DenseLayer] = []
    linears: list[nn.Module] = []
    for name, child in module.named_modules(remove_duplicate=False):
        if _is_altered(child):
            return None
        if type(child) is nn.Linear:
            prefix = f"{name}." if name else ""
            layers.append(
                DenseLayer(
                    f"{prefix}weight",
                    f"{prefix}bias" if child.bias is not None else None,
                )
            )
            linears.append(child)
        elif type(child) in ELEMENTWISE and layers:
            last = layers[-1]
            layers[-1] = DenseLayer(last.weight, last.bias, (*last.activations, child))
        elif type(child) is not nn.Sequential:
            return None
    owned = [parameter for linear in linears for parameter in linear.parameters()]
    shared = len({id(parameter) for parameter in owned}) < len(owned)
    return None if shared or not layers else tuple(layers)


def dense_hessians(
    layers: Sequence[DenseLayer],
    tensors: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    per_replica_targets: bool = False,
) -> Tensor | None:
    """Return the Hessians of K dense networks in all their parameters.

    They are exact to rounding, and exactly symmetric.

    Rows and columns follow the network's ``named_parameters()``: layer after layer, the
    weight by rows, then the bias. One half is computed and mirrored, so the asymmetry
    is zero and says nothing of the rounding. Replicas are spread over as many threads
    as PyTorch has (`torch.get_num_threads`).

    Args:
        layers: From `dense_layers`.
        tensors: The stacked parameters (K, ...) by name, all of one floating-point
            dtype.
        x: Inputs (N, inputs), shared by the replicas.
        y: Targets (N, ...), or (K, N, ...) with ``per_replica_targets``.
        loss: ``loss(outputs (N, outputs), targets)``, a scalar: a sum over samples of a
            twice differentiable function of each sample's outputs, such as a mean.
        per_replica_targets: Each replica has targets of its own.

    Returns:
        (K, P, P), or None where this method does not apply and a general one must be
        used: inputs with more than two axes, or a loss that ties samples together.

    >>> network = nn.Sequential(nn.Linear(1, 1))
    >>> tensors = {name: w.detach()[None] for name, w in network.named_parameters()}
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> dense_hessians(dense_layers(network), tensors, x, x, nn.functional.mse_loss)
    tensor([[[10.,  4.],
             [ 4.,  2.]]])
    """
    if x.ndim != 2:
        return None
    with torch.no_grad():
        weights = [tensors[layer.weight] for layer in layers]
        plan = _Plan.of(weights, [layer.bias is not None for layer in layers], x)
        replicas = len(weights[0])
        hessians = x.new_empty(replicas, plan.parameters, plan.parameters)
        pieces = [
            slice(k, min(k + plan.replicas, replicas))
            for k in range(0, replicas, plan.replicas)
        ]

        def work(piece: slice) -> bool:
            own = {name: tensor[piece] for name, tensor in tensors.items()}
            targets = (
                y[piece]
                if per_replica_targets
                else y.expand(piece.stop - piece.start, *y.shape)
            )
            return _fill(hessians[piece], plan, layers, own, x, targets, loss)

        return hessians if all(_spread(work, pieces)) else None


def _is_altered(module: nn.Module) -> bool:
    """Return whether calling the module does more than its class says."""
    before = module._forward_pre_hooks, module._backward_pre_hooks
    after = module._forward_hooks, module._backward_hooks
    return any(before) or any(after) or "forward" in vars(module)


# --- which entry stands where ---------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Sizes, the order of the blocks, and where their numbers belong in the Hessian.

    Attributes:
        parameters: P.
        units: Of each layer and all before it: units[l] to units[l + 1] are those of
            layer l.
        curved: (P * P,), place of each entry's first term among the blocks, as they are
            computed.
        bent: (P * P,), the same for the second term; place 0 holds a zero.
        biased: Whether each layer has a bias.
        replicas: Replicas in one piece of work.
        samples: Samples in one piece of work.
    """

    parameters: int
    units: tuple[int, ...]
    curved: Tensor
    bent: Tensor
    biased: tuple[bool, ...]
    replicas: int
    samples: int

    @classmethod
    def of(cls, weights: Sequence[Tensor], biased: Sequence[bool], x: Tensor) -> _Plan:
        """Return the plan for stacked weights (K, outputs, inputs)."""
        widths = [weight.shape[1] for weight in weights]
        units = (0, *accumulate(widths))
        places = _places(weights, biased)
        parameters = sum(place.numel() for place in places)
        curved = torch.zeros(parameters, parameters, dtype=torch.int32)
        bent = torch.zeros_like(curved)
        first, second = 0, 1  # the second kind begins after its zero
        for later, rows in reversed(list(enumerate(places))):
            for earlier, columns in enumerate(places[: later + 1]):
                (i, j), (p, q) = rows.shape, columns.shape
                index = torch.arange(
                    first, first + rows.numel() * columns.numel(), dtype=torch.int32
                )
                at = rows[:, :, None, None], columns[None, None]
                curved[at] = index.view(p, i, q, j).permute(1, 3, 0, 2)
                first += len(index)
                if earlier < later:
                    # The bias, if there is one, feeds no later unit.
                    linked = widths[later - 1]
                    index = torch.arange(
                        second, second + q * i * p * linked, dtype=torch.int32
                    )
                    at = rows[:, :linked, None, None], columns[None, None]
                    bent[at] = index.view(q, i, p, linked).permute(1, 3, 2, 0)
                    second += len(index)
        tangents = sum(
            width * last for width, last in zip(widths, units[1:], strict=True)
        )
        samples = max(1, min(len(x), TANGENT_NUMBERS // tangents))
        return cls(
            parameters=parameters,
            units=units,
            curved=_mirrored(curved).to(x.device),
            bent=_mirrored(bent).to(x.device),
            biased=tuple(biased),
            replicas=max(1, TANGENT_NUMBERS // (tangents * samples)),
            samples=samples,
        )


def _places(weights: Sequence[Tensor], biased: Sequence[bool]) -> list[Tensor]:
    """Return each layer's parameter positions (outputs, inputs + bias).

    A bias is the last column.
    """
    places, start = [], 0
    for weight, has_bias in zip(weights, biased, strict=True):
        outputs, inputs = weight.shape[1:]
        parts = [torch.arange(start, start + outputs * inputs).view(outputs, inputs)]
        start += outputs * inputs
        if has_bias:
            parts.append(torch.arange(start, start + outputs)[:, None])
            start += outputs
        places.append(torch.cat(parts, dim=1))
    return places


def _mirrored(index: Tensor) -> Tensor:
    """Return the lower half, also in place of the upper one.

    A later layer's parameters come after an earlier's.
    """
    return (index.tril() + index.tril(-1).T).flatten()


# --- one piece of work ----------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """What a layer knows after a forward and a backward pass; K replicas, N samples.

    Attributes:
        weight: (K, outputs, inputs).
        inputs: (K, inputs + bias, N): what the parameters are multiplied with; ones for
            a bias.
        slope: (K, outputs, N): the first derivative of the activation.
        delta: (K, outputs, N): the derivative of the loss in the units' sums.
        bend: (K, outputs, N): the loss's derivative in the units' outputs, times the
            second derivative.
    """

    weight: Tensor
    inputs: Tensor
    slope: Tensor
    delta: Tensor
    bend: Tensor

    def part(self, samples: slice) -> _Level:
        """Return the same for some of the samples."""
        cut = (
            tensor[..., samples]
            for tensor in (self.inputs, self.slope, self.delta, self.bend)
        )
        return _Level(self.weight, *cut)


def _fill(
    out: Tensor,
    plan: _Plan,
    layers: Sequence[DenseLayer],
    tensors: Mapping[str, Tensor],
    x: Tensor,
    targets: Tensor,
    loss: Loss,
) -> bool:
    """Compute Hessians into ``out``; return False if the loss ties samples together."""
    with torch.no_grad():
        inputs, slopes, bends, outputs = _forward(layers, tensors, x)
        gradient, curvature = _loss_derivatives(outputs, targets, loss)
        if curvature is None:
            return False
        levels: list[_Level] = []
        back = gradient
        for layer, taken, slope, bend in reversed(
            list(zip(layers, inputs, slopes, bends, strict=True))
        ):
            weight = tensors[layer.weight]
            levels.insert(0, _Level(weight, taken, slope, back * slope, back * bend))
            back = weight.mT @ levels[0].delta
        curved: Tensor | float = 0.0
        bent: Tensor | float = 0.0
        for start in range(0, len(x), plan.samples):
            part = slice(start, start + plan.samples)
            blocks = _blocks(
                [level.part(part) for level in levels], curvature[..., part], plan.units
            )
            curved, bent = curved + blocks[0], bent + blocks[1]
        for replica, hessian in enumerate(out.flatten(1)):
            torch.index_select(
                torch.as_tensor(curved)[replica], 0, plan.curved, out=hessian
            )
            hessian += torch.as_tensor(bent)[replica].index_select(0, plan.bent)
        return True


def _forward(
    layers: Sequence[DenseLayer], tensors: Mapping[str, Tensor], x: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Return each layer's inputs, slopes and second derivatives, and the outputs.

    Outputs are (K, outputs, N).
    """
    inputs, slopes, bends = [], [], []
    replicas = len(tensors[layers[0].weight])
    a = x.T.expand(replicas, -1, -1)
    for layer in layers:
        z = tensors[layer.weight] @ a
        if layer.bias is not None:
            z += tensors[layer.bias][..., None]
            a = torch.cat([a, a.new_ones(replicas, 1, len(x))], dim=1)
        inputs.append(a)
        with torch.enable_grad():
            z.requires_grad_()
            active = layer.activate(z)
            slope = torch.autograd.grad(active.sum(), z, create_graph=True)[0]
            bend = _gradient(slope.sum(), z)
        a = active.detach()
        slopes.append(slope.detach())
        bends.append(bend)
    return inputs, slopes, bends, a


def _gradient(total: Tensor, variable: Tensor) -> Tensor:
    """Return the gradient, zero where ``total`` does not depend on ``variable``.

    The graph stays.
    """
    if not total.requires_grad:
        return torch.zeros_like(variable)
    found = torch.autograd.grad(
        total, variable, retain_graph=True, materialize_grads=True
    )[0]
    return found.detach()


def _loss_derivatives(
    outputs: Tensor, targets: Tensor, loss: Loss
) -> tuple[Tensor, Tensor | None]:
    """Return the loss's gradient and each sample's curvature.

    Their shapes are (K, outputs, N) and (K, outputs, outputs, N).
    """
    with torch.enable_grad():
        free = outputs.mT.contiguous().requires_grad_()
        total = torch.stack(
            [loss(own, target) for own, target in zip(free, targets, strict=True)]
        ).sum()
        gradient = torch.autograd.grad(total, free, create_graph=True)[0]
        rows = [
            _gradient(gradient[..., output].sum(), free)
            for output in range(free.shape[-1])
        ]
        curvature = torch.stack(rows, dim=-2)  # (K, N, outputs, outputs)
        # These rows are sums over samples: each sample's own curvature only if no two
        # samples are tied. A product with a vector that differs from sample to sample
        # tells.
        probe = torch.sin(
            torch.arange(1.0, free.numel() + 1, device=free.device, dtype=free.dtype)
        )
        probe = probe.view_as(free)
        product = _gradient((gradient * probe).sum(), free)
    expected = (curvature @ probe[..., None])[..., 0]
    gap, scale = (product - expected).abs().amax(), curvature.abs().amax()
    separate = bool(gap <= 1e3 * torch.finfo(free.dtype).eps * scale) or not bool(
        gap.isfinite()
    )
    return gradient.detach().mT, curvature.permute(0, 2, 3, 1) if separate else None


def _blocks(
    levels: Sequence[_Level], curvature: Tensor, units: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return both terms of all blocks of later with earlier layers, (K, ...).

    The order is that of the plan.
    """
    sums, outputs = _tangents(levels, units)
    curved, bent = [], [curvature.new_zeros(len(curvature), 1)]
    second: Tensor | None = None
    for later in reversed(range(len(levels))):
        level, known = levels[later], units[later]
        if second is None:
            second = torch.einsum("kocn,ktcn->kton", curvature, outputs[later])
        else:
            second = _times(levels[later + 1].weight.mT, second[:, : units[later + 1]])
        second *= level.slope[:, None]
        second[:, :known] += level.bend[:, None] * sums[later]
        second[:, known:].diagonal(dim1=1, dim2=2).add_(level.bend.mT)
        for earlier in range(later + 1):
            taken = levels[earlier].inputs
            own = slice(units[earlier], units[earlier + 1])
            curved.append(
                _over_samples(second[:, own], taken[:, :, None] * level.inputs[:, None])
            )
            if earlier < later:
                feeding = outputs[later - 1][:, own]
                bent.append(
                    _over_samples(taken[:, :, None] * level.delta[:, None], feeding)
                )
    return torch.cat(curved, dim=1), torch.cat(bent, dim=1)


def _tangents(
    levels: Sequence[_Level], units: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return how layers depend on earlier units: (K, T, width, N).

    Sums depend on earlier units, outputs on those and their own.
    """
    sums: list[Tensor] = []
    outputs: list[Tensor] = []
    for place, level in enumerate(levels):
        known, every = units[place], units[place + 1]
        replicas, width, samples = level.slope.shape
        out = level.slope.new_zeros(replicas, every, width, samples)
        sums.append(_times(level.weight, outputs[-1]) if outputs else out[:, :0])
        torch.mul(sums[-1], level.slope[:, None], out=out[:, :known])
        # The tangent of a unit's own sum has the slope 1.
        out[:, known:].diagonal(dim1=1, dim2=2).copy_(level.slope.mT)
        outputs.append(out)
    return sums, outputs


def _times(matrix: Tensor, tangents: Tensor) -> Tensor:
    """Multiply (K, rows, columns) by tangents (K, T, columns, N).

    Returns (K, T, rows, N).
    """
    replicas, count = tangents.shape[:2]
    spread = matrix[:, None].expand(-1, count, -1, -1).flatten(0, 1)
    product = torch.bmm(spread, tangents.flatten(0, 1))
    return product.view(replicas, count, *product.shape[1:])


def _over_samples(left: Tensor, right: Tensor) -> Tensor:
    """Return products of all pairs of rows summed over samples.

    Rows (K, a, b, N) and (K, c, d, N) give (K, a*b*c*d).
    """
    return torch.bmm(left.flatten(1, 2), right.flatten(1, 2).mT).flatten(1)


def _spread(work: Callable[[slice], bool], pieces: Sequence[slice]) -> list[bool]:
    """Do the pieces side by side, one thread each.

    On two idle cores that is 8 % faster than threads within the products, and does not
    collapse on busy ones.
    """
    threads = min(torch.get_num_threads(), len(pieces))
    if threads < 2:
        return [work(piece) for piece in pieces]
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(before)
