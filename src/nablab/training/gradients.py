"""Gradient norms and update-to-weight ratios of all replicas while they train."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from nablab.errors import UsageError
from nablab.training.batches import Batches
from nablab.training.engine import FloatArray, Loss, loss_function
from nablab.training.inputs import Prepare, laid_out, layout
from nablab.training.probes import Context, Probe
from nablab.training.seeding import generator

# Bounds the memory: this many samples of all replicas together go through a gradient
# at once.
SAMPLES_AT_ONCE = 16384
# The same for convolutions, whose feature maps take tens of kilobytes per image.
IMAGES_AT_ONCE = 1000
# Groups into which a sample is cut: the differences between them say how sure its norm
# is.
GROUPS = 10
# Multiplications of one gradient below which one thread takes it. Threads that wait for
# each other at every small operation made a measurement of ten networks of 571
# parameters 15 times slower where other work kept the cores busy.
ONE_THREAD = 1e8


class GradientNorms(Probe):
    r"""Measures the gradient of every replica at chosen steps.

    It is measured on all samples and on a minibatch.

    Engines do not hand out their gradients, so each measurement costs one gradient over
    all data for every replica, in eval mode; a minibatch costs its share. Dense
    networks take it all at once (`torch.func.vmap`), convolutions one after the other,
    which is faster for them.

    With ``samples`` the full gradient is estimated. The gradient of n samples alone
    would be too long: :math:`E\|g_n\|^2 = \|g\|^2 + \mathrm{tr}(S)/n`, with S the
    covariance of single samples' gradients. So the n samples are cut into ten groups,
    and the products of different groups' gradients are averaged: :math:`E\,g_i \cdot
    g_j = \|g\|^2`, without a bias. Where noise makes the average negative, the norm is
    NaN. The jackknife over groups gives the standard error.

    The update-to-weight ratio :math:`\|\theta_{t+1} - \theta_t\| / \|\theta_t\|` needs
    no gradient: the probe looks at the weights once more after the next step.

    Args:
        build: Makes one network, as given to `fit`.
        data: Inputs (N, ...) and targets (N, ...), or (K, N, ...) with per-replica
            targets, as given to `fit`.
        every: Steps between measurements; steps 0 and the multiples of it are measured.
        loss: As given to `fit`.
        minibatch: Size of the minibatch whose gradient is measured beside the full one,
            drawn in the order in which `fit` draws batches of that size: for a training
            with this batch size it is the very batch of the next step. None for none.
        per_replica_targets: As given to `fit`.
        prepare: As given to `fit`; applied in parts, so that ``data`` may stay in fewer
            bytes.
        samples: Estimate the full gradient from this many samples, drawn once; None
            for all of them.
        updates: Whether to measure update-to-weight ratios.

    Attributes:
        every: Steps to the next look; 1 while an update is awaited.
        names: The parameters, in order.

    Raises:
        UsageError: A number below 1, or a sample too small to be cut into groups.

    >>> from nablab.training import fit
    >>> build = lambda: nn.Linear(1, 1)
    >>> x = torch.linspace(0, 1, 8)[:, None]
    >>> probe = GradientNorms(build, (x, 2 * x), every=5)
    >>> _ = fit(build, (x, 2 * x), seeds=[0, 1], steps=10, probes=[probe])
    >>> probe.steps, probe.norms.shape, sorted(probe.parts)
    (array([ 0,  5, 10]), (2, 3), ['bias', 'weight'])
    """

    enough_looks = 3

    def __init__(
        self,
        build: Callable[[], nn.Module],
        data: tuple[Any, Any],
        *,
        every: int,
        loss: Loss = "mse",
        minibatch: int | None = None,
        per_replica_targets: bool = False,
        prepare: Prepare | None = None,
        samples: int | None = None,
        updates: bool = True,
    ) -> None:
        for name, value, least in (
            ("every", every, 1),
            ("minibatch", minibatch, 1),
            ("samples", samples, GROUPS),
        ):
            if value is not None and value < least:
                raise UsageError(
                    f"{name}={value} is impossible: it must be at least {least}."
                )
        with torch.random.fork_rng(devices=[]):
            self._module = build().eval()
        self._x, self._y = (torch.as_tensor(part) for part in data)
        self._loss, self._per_replica_targets = loss_function(loss), per_replica_targets
        self._minibatch, self._updates, self._period = minibatch, updates, every
        self.names = tuple(
            name for name, p in self._module.named_parameters() if p.requires_grad
        )
        convolves = any(
            isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
            for m in self._module.modules()
        )
        self._vectorized, self._at_once = (
            not convolves,
            IMAGES_AT_ONCE if convolves else SAMPLES_AT_ONCE,
        )
        self._prepare, self._layout = prepare, layout(self._module)
        self._sample = _drawn(len(self._x), samples)
        self._clear()

    def _clear(self) -> None:
        self._awaited = False
        self._before: dict[str, Tensor] = {}
        self._steps: list[int] = []
        # Per measurement float64 (K, L + 1): parameter by parameter, then over all of
        # them.
        self._full: list[Tensor] = []
        self._error: list[Tensor] = []
        self._batch: list[Tensor] = []
        self._ratio: list[Tensor] = []

    @property
    def every(self) -> int:
        """Steps to the next look: one while the step after a measurement is awaited."""
        return 1 if self._awaited else self._period

    @every.setter
    def every(self, steps: int) -> None:
        self._period = steps

    # What was found

    @property
    def steps(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """int64 (T,), the steps that were measured."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def norms(self) -> FloatArray:
        """float64 (K, T), norms of the gradient over all samples.

        NaN after a replica ended.
        """
        return self._table(self._full)[..., -1]

    @property
    def norm_errors(self) -> FloatArray:
        """float64 (K, T), the standard errors of norms that are estimated.

        (K, 0) where none is.
        """
        return self._table(self._error)[..., -1]

    @property
    def parts(self) -> dict[str, FloatArray]:
        """The same by parameter."""
        table = self._table(self._full)
        return {name: table[..., place] for place, name in enumerate(self.names)}

    @property
    def minibatch_norms(self) -> FloatArray:
        """float64 (K, T), norms of the gradient on each replica's minibatch.

        (K, 0) if there is none.
        """
        return self._table(self._batch)[..., -1]

    @property
    def ratios(self) -> FloatArray:
        """float64 (K, T), update-to-weight ratios over all parameters.

        NaN where no step followed.
        """
        return self._table(self._ratio)[..., -1]

    @property
    def part_ratios(self) -> dict[str, FloatArray]:
        """The same by parameter."""
        table = self._table(self._ratio)
        return {name: table[..., place] for place, name in enumerate(self.names)}

    def _table(self, rows: list[Tensor]) -> FloatArray:
        if not rows:
            return np.empty(
                (self._full[0].shape[0] if self._full else 0, 0, len(self.names) + 1)
            )
        return torch.stack(rows, dim=1).numpy()

    # The probe

    def on_train_begin(self, context: Context) -> None:
        """Measure the untrained networks; after a resume there is nothing to do."""
        if context.step == 0:
            self._clear()
            self._measure(context)

    def on_step_end(self, context: Context) -> None:
        """Finish the awaited update, then measure if it is time."""
        if self._awaited:
            self._ratio[-1] = self._ended_as_nan(self._ratios_since(context), context)
            self._awaited, self._before = False, {}
        if context.step % self._period == 0:
            self._measure(context)

    def _measure(self, context: Context) -> None:
        tensors = context.engine.parameters()
        device = tensors[self.names[0]].device
        self._module.to(device)
        self._x, self._y = self._x.to(device), self._y.to(device)
        self._steps.append(context.step)
        if self._sample is None:
            self._full.append(
                self._ended_as_nan(self._norms(self._full_gradient(tensors)), context)
            )
        else:
            found, errors = self._estimated_norms(tensors, self._sample)
            self._full.append(self._ended_as_nan(found, context))
            self._error.append(self._ended_as_nan(errors, context))
        if self._minibatch is not None:
            found = self._norms(
                self._minibatch_gradient(tensors, context, self._minibatch)
            )
            self._batch.append(self._ended_as_nan(found, context))
        if self._updates:
            self._ratio.append(torch.full_like(self._full[-1], torch.nan))
            if context.step < context.steps:
                self._awaited, self._before = (
                    True,
                    {name: tensors[name] for name in self.names},
                )

    def _ended_as_nan(self, values: Tensor, context: Context) -> Tensor:
        if context.step:
            values[torch.from_numpy(np.isnan(context.losses[:, -1]))] = torch.nan
        return values

    def _ratios_since(self, context: Context) -> Tensor:
        now = context.engine.parameters()
        moved = self._norms(
            {name: now[name] - old.to(now[name]) for name, old in self._before.items()}
        )
        return moved / self._norms(self._before)

    def _norms(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compute float64 (K, L + 1) of tensors (K, ...) by name."""
        squares = [
            tensors[name].double().flatten(1).square().sum(dim=1) for name in self.names
        ]
        return (
            torch.stack([*squares, torch.stack(squares).sum(dim=0)], dim=1).sqrt().cpu()
        )

    def _full_gradient(
        self, tensors: Mapping[str, Tensor], among: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the gradients (K, ...), by name, of the mean loss over all samples.

        With ``among``, the mean is over the samples at these indices only.
        """
        samples = len(self._x) if among is None else len(among)
        size = max(
            1,
            self._at_once // len(tensors[self.names[0]])
            if self._vectorized
            else self._at_once,
        )
        total = {name: torch.zeros_like(tensors[name]) for name in self.names}
        for start in range(0, samples, size):
            part = (
                slice(start, start + size)
                if among is None
                else among[start : start + size]
            )
            x, y = (
                self._x[part],
                self._y[:, part] if self._per_replica_targets else self._y[part],
            )
            share = len(x) / samples
            found = self._gradients(
                tensors, x, y, own_x=False, own_y=self._per_replica_targets
            )
            for name, gradient in found.items():
                total[name] += share * gradient
        return total

    def _estimated_norms(
        self, tensors: Mapping[str, Tensor], sample: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Estimate norms and their standard errors, float64 (K, L + 1), from a sample.

        They come from the products of groups of the sample.
        """
        groups = [
            self._full_gradient(tensors, group)
            for group in sample.to(self._x.device).chunk(GROUPS)
        ]
        products = []  # by parameter, (K, groups, groups)
        for name in self.names:
            rows = torch.stack(
                [group[name].flatten(1) for group in groups], dim=1
            ).double()
            products.append(rows @ rows.mT)
        products.append(torch.stack(products).sum(dim=0))
        squares, errors = zip(*(_mean_product(gram) for gram in products), strict=True)
        # The square root of a negative number is NaN: noise hides such a gradient.
        norms = torch.stack(squares, dim=1).sqrt()
        return norms.cpu(), (torch.stack(errors, dim=1) / (2 * norms)).cpu()

    def _minibatch_gradient(
        self, tensors: Mapping[str, Tensor], context: Context, size: int
    ) -> dict[str, Tensor]:
        batches = Batches(len(self._x), size, context.seeds, self._x.device)
        ((_, _, indices),) = batches.between(context.step, context.step + 1)
        if indices is None:
            return self._full_gradient(tensors)
        chosen = indices[0]
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        y = self._y[rows, chosen] if self._per_replica_targets else self._y[chosen]
        return self._gradients(tensors, self._x[chosen], y, own_x=True, own_y=True)

    def _gradients(
        self,
        tensors: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        own_x: bool,
        own_y: bool,
    ) -> dict[str, Tensor]:
        """Compute gradients (K, ...) by name.

        x and y have an axis of replicas where ``own``.
        """
        x, samples = self._ready(x, own_x), x.shape[1] if own_x else len(x)
        with _threads(samples * sum(tensors[name].numel() for name in self.names)):
            return self._gradients_now(tensors, x, y, own_x, own_y)

    def _ready(self, x: Tensor, own_x: bool) -> Tensor:
        """Prepare stored samples for the network.

        They are (N, ...), or (K, N, ...) where ``own_x``.
        """
        flat = x.flatten(0, 1) if own_x else x
        ready = laid_out(
            flat if self._prepare is None else self._prepare(flat), self._layout
        )
        return ready.reshape(*x.shape[:2], *ready.shape[1:]) if own_x else ready

    def _gradients_now(
        self,
        tensors: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        own_x: bool,
        own_y: bool,
    ) -> dict[str, Tensor]:
        chosen = {name: tensors[name] for name in self.names}
        rest = {name: tensor for name, tensor in tensors.items() if name not in chosen}
        if self._vectorized:
            function = grad_and_value(self._loss_of)
            dims = (0, 0, 0 if own_x else None, 0 if own_y else None)
            try:
                with torch.no_grad(), warnings.catch_warnings():
                    # Operations without a batching rule run in a hidden loop and only
                    # warn of it.
                    warnings.filterwarnings("error", message=".*batching rule.*")
                    return dict(
                        vmap(function, in_dims=dims, randomness="error")(
                            chosen, rest, x, y
                        )[0]
                    )
            except (RuntimeError, NotImplementedError, UserWarning) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                # one replica after the other from now on, with the same results
                self._vectorized = False
        found = []
        for k in range(len(tensors[self.names[0]])):
            leaves = {
                name: tensor[k].detach().requires_grad_()
                for name, tensor in chosen.items()
            }
            own = {name: tensor[k] for name, tensor in rest.items()}
            with torch.enable_grad():
                value = self._loss_of(
                    leaves, own, x[k] if own_x else x, y[k] if own_y else y
                )
            found.append(
                torch.autograd.grad(
                    value, list(leaves.values()), materialize_grads=True
                )
            )
        return {
            name: torch.stack(parts)
            for name, parts in zip(chosen, zip(*found, strict=True), strict=True)
        }

    def _loss_of(
        self, tensors: dict[str, Tensor], rest: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        return self._loss(functional_call(self._module, {**tensors, **rest}, (x,)), y)

    # Checkpoints

    def state(self) -> dict[str, Tensor]:
        """Return all measurements, and the weights of an awaited update."""
        state = {
            "steps": torch.tensor(self._steps, dtype=torch.int64),
            "awaited": torch.tensor(self._awaited),
        }
        for name, rows in self._tables().items():
            state |= {f"{name}/{place}": row for place, row in enumerate(rows)}
        return state | {
            f"before/{name}": tensor.cpu() for name, tensor in self._before.items()
        }

    def _tables(self) -> dict[str, list[Tensor]]:
        return {
            "full": self._full,
            "error": self._error,
            "batch": self._batch,
            "ratio": self._ratio,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._clear()
        self._steps = state["steps"].tolist()
        self._awaited = bool(state["awaited"])
        for name, rows in self._tables().items():
            rows += [
                state[f"{name}/{place}"].clone()
                for place in range(sum(k.startswith(f"{name}/") for k in state))
            ]
        prefix = "before/"
        self._before = {
            key.removeprefix(prefix): tensor.clone()
            for key, tensor in state.items()
            if key.startswith(prefix)
        }


def _drawn(samples: int, wanted: int | None) -> Tensor | None:
    """Draw the indices of the samples for an estimate, the same each time.

    None where it would be all of them.
    """
    if wanted is None or wanted >= samples:
        return None
    return torch.randperm(samples, generator=generator(0))[: wanted - wanted % GROUPS]


def _mean_product(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate the mean product of two different groups and its standard error.

    The error is that of the jackknife; both are (K,).

    Args:
        gram: Products (K, M, M) of the gradients of M groups of one size.
    """
    count, own, rows = gram.shape[-1], gram.diagonal(dim1=1, dim2=2), gram.sum(dim=2)
    total, trace = rows.sum(dim=1), own.sum(dim=1)
    mean = (total - trace) / (count * (count - 1))
    without = (total - trace)[:, None] - 2 * (rows - own)
    others = without / ((count - 1) * (count - 2))
    error = ((count - 1) * others.var(dim=1, correction=0)).sqrt()
    return mean, error


@contextmanager
def _threads(work: float) -> Iterator[None]:
    """Run small work inside on one thread."""
    before = torch.get_num_threads()
    if work < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
