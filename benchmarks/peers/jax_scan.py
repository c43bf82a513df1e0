r"""JAX: `vmap` over replicas, a scan over the steps, Adam written out.

All of it is one compiled call. It is written for JAX's good, by measurement on two
cores (deep network, 300 points, 30 replicas):

- Features first, :math:`W A` instead of :math:`A W^T`: 42 instead of 98 µs per
  replica-step.
- One device per core with `pmap`, each with its share of the replicas: 14 instead of 42
  µs, since one device runs such small operations on one core only. This is the second JAX
  side.
- At 4,000 points the activations of all replicas leave the cache. One replica after the
  other within each device (`lax.map` in place of `vmap`): 380 instead of 510 µs. At 300
  points it costs: 18 instead of 14 µs.
- The state's buffers are donated. Flags for wider vectors, oneDNN and Eigen's threads
  made no difference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import LEARNING_RATE, Case
from benchmarks.machine import usable_cores
from benchmarks.peers import Absent
from nablab.training.engine import FloatArray

FLAGS = f"--xla_force_host_platform_device_count={usable_cores()}"

MANY_POINTS = 1_000
# by whether there are many points: a call takes about a second either way
STEPS_PER_CALL = {False: 1_000, True: 100}


class JaxScan:
    """All replicas of the case in JAX.

    Args:
        case: The race.
        per_core: One device per core by `pmap`, instead of one device for all.

    Raises:
        Absent: JAX is not installed.
    """

    def __init__(self, case: Case, *, per_core: bool) -> None:
        jax = load_jax()
        self.name = "JAX, device per core" if per_core else "JAX vmap+jit+scan"
        self.replicas = case.replicas
        self._jax, many = jax, case.points > MANY_POINTS
        devices = _devices(jax, case.replicas) if per_core else 1
        self._shape = (
            (devices, case.replicas // devices) if per_core else (case.replicas,)
        )
        chunk = _chunk(jax, case, STEPS_PER_CALL[many], one_by_one=many and per_core)
        self._initial = self._stack(case)
        self.start()
        began = time.perf_counter()
        mapped = (
            jax.pmap(chunk, donate_argnums=0, devices=jax.devices()[:devices])
            if per_core
            else jax.jit(chunk, donate_argnums=0)
        )
        self._compiled = mapped.lower(self._state).compile()
        self.compile_seconds = time.perf_counter() - began

    def start(self) -> None:
        """Reset to the untrained weights, and zeros for Adam."""
        zeros = self._jax.tree.map(np.zeros_like, self._initial)
        count = np.zeros(self._shape[:-1], dtype=np.float32)
        self._state: Any = (self._initial, zeros, zeros, count)

    def train(self, steps: int) -> FloatArray:
        """Make as many whole calls as ``steps`` needs."""
        losses: list[Any] = []
        while sum(part.shape[-2] for part in losses) < steps:
            self._state, part = self._compiled(self._state)
            losses.append(part)
        return np.concatenate([_by_replica(np.asarray(part)) for part in losses])

    def _stack(self, case: Case) -> list[Any]:
        """Stack weights (K, outputs, inputs) and biases (K, outputs, 1) of each layer.

        K is split by device.
        """
        replicas = [list(module.parameters()) for module in case.modules()]
        stacked = [
            np.stack([p.detach().numpy() for p in tensors])
            for tensors in zip(*replicas, strict=True)
        ]
        shaped = [a.reshape(*self._shape, *a.shape[1:]) for a in stacked]
        return [
            (w, b[..., None]) for w, b in zip(shaped[::2], shaped[1::2], strict=True)
        ]


def load_jax() -> Any:
    """Import JAX on the CPU with one device per core.

    Its first import in the process decides.

    Raises:
        Absent: It is not installed.
    """
    if FLAGS not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        import jax
    except ImportError as error:
        raise Absent("JAX is not installed: pip install 'nablab[bench]'") from error
    jax.jit(lambda x: x + 1)(1.0)  # so that starting JAX does not count as compiling
    return jax


def _by_replica(losses: FloatArray) -> FloatArray:
    """Order losses by step and replica, float64 (steps, replicas).

    They come as (devices, steps, replicas of each), or without devices.
    """
    devices = losses.reshape(-1, *losses.shape[-2:])
    return np.concatenate(list(devices), axis=1).astype(np.float64)


def _devices(jax: Any, replicas: int) -> int:
    """Find the largest number of devices that share the replicas evenly."""
    return max(n for n in range(1, len(jax.devices()) + 1) if replicas % n == 0)


def _chunk(
    jax: Any, case: Case, steps: int, *, one_by_one: bool
) -> Callable[[Any], Any]:
    """Make the function (state) -> (state, losses (steps, replicas)) to compile."""
    jnp = jax.numpy
    x, y = (tensor.numpy().T for tensor in case.data())
    slope = 0.01 if case.activation == "leaky_relu" else 0.0

    def loss(parameters: Any) -> Any:
        h = x
        for weight, bias in parameters[:-1]:
            z = weight @ h + bias
            h = jnp.where(z > 0, z, slope * z)
        weight, bias = parameters[-1]
        return jnp.mean((weight @ h + bias - y) ** 2)

    gradient = jax.value_and_grad(loss)

    def gradients(parameters: Any) -> Any:
        return (
            jax.lax.map(gradient, parameters)
            if one_by_one
            else jax.vmap(gradient)(parameters)
        )

    def step(state: Any, _: None) -> Any:
        parameters, first, second, count = state
        losses, found = gradients(parameters)
        return (
            *_adam(jax, parameters, found, first, second, count + 1),
            count + 1,
        ), losses

    return lambda state: jax.lax.scan(step, state, None, length=steps)


def _adam(
    jax: Any, parameters: Any, gradients: Any, first: Any, second: Any, count: Any
) -> Any:
    """Take one step of Adam in the order of operations of `torch.optim.Adam`."""
    root, each = jax.numpy.sqrt, jax.tree.map
    first = each(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = each(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
    size, correction = LEARNING_RATE / (1 - 0.9**count), root(1 - 0.999**count)
    parameters = each(
        lambda p, m, v: p - size * m / (root(v) / correction + 1e-8),
        parameters,
        first,
        second,
    )
    return parameters, first, second
