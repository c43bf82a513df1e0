"""A network by its notation for samples of a given shape: of numbers, or of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nablab.errors import UsageError
from nablab.models.dense_network import Activation, dense, parameter_count, parse_widths
from nablab.models.factory import check_output, load_factory
from nablab.models.images import (
    check_image_network,
    image_network,
    parameter_count_of,
)
from nablab.models.last_batch import check_single

if TYPE_CHECKING:
    from torch import Tensor, nn


def network(
    spec: str, *, shape: Sequence[int], outputs: int, activation: Activation = "relu"
) -> nn.Sequential:
    """Build an untrained network for inputs (N, *shape) and outputs (N, outputs).

    Args:
        spec: For inputs of one axis the widths of a dense network, as `dense` takes
            them; for images a name or the layers of an `image_network`.
        shape: Of one input: (features,), or (channels, size, size).
        outputs: Values per sample.
        activation: After every layer but the last.

    Raises:
        UsageError: As `check_network`.

    >>> network("1-9-1", shape=(1,), outputs=1)[0]
    Linear(in_features=1, out_features=9, bias=True)
    >>> len(network("lenet", shape=(1, 28, 28), outputs=10))
    12
    """
    check_network(spec, shape=shape, outputs=outputs)
    if len(shape) == 1:
        return dense(spec, activation)
    return image_network(
        spec, channels=shape[0], size=shape[-1], classes=outputs, activation=activation
    )


def network_builder(
    spec: str, *, shape: Sequence[int], outputs: int, model: str | None = None
) -> Callable[[], nn.Module]:
    """Return a function that builds one fresh network.

    The user's own if there is one, else the one of the notation.

    Args:
        spec: As in `network`.
        shape: Of one input.
        outputs: Values per sample.
        model: The user's factory, as in `load_factory`.
    """
    if model is not None:
        return load_factory(model)
    return lambda: network(spec, shape=shape, outputs=outputs)


def check_model(
    model: str,
    *,
    shape: Sequence[int],
    outputs: int,
    samples: int = 0,
    batch_sizes: Sequence[int | None] = (),
) -> None:
    """Raise `UsageError` unless a user's network fits the inputs and the outputs.

    It must take inputs (2, *shape) and give (2, outputs). With ``samples`` and
    ``batch_sizes`` it must also be trainable on the batches that these give.

    Args:
        model: The user's factory, as in `load_factory`.
        shape: Of one input.
        outputs: Values per sample.
        samples: Of the training set.
        batch_sizes: Samples per step in the trainings to come; None for all.
    """
    import torch

    build = load_factory(model)
    check_output(build(), torch.zeros(2, *shape), (2, outputs))
    for size in batch_sizes:
        check_single(build, samples, size, lambda: torch.zeros(1, *shape))


def check_network(
    spec: str,
    *,
    shape: Sequence[int],
    outputs: int,
    samples: int = 0,
    batch_sizes: Sequence[int | None] = (),
) -> None:
    """Raise `UsageError` unless a network can be built for these inputs and outputs.

    With ``samples`` and ``batch_sizes`` it must also be trainable on the batches that
    these give. Needs no torch, unless a batch is one sample.

    Args:
        spec: As in `network`.
        shape: Of one input.
        outputs: Values per sample.
        samples: Of the training set.
        batch_sizes: Samples per step in the trainings to come; None for all.

    Raises:
        UsageError: There is no such network, it does not fit the inputs or the outputs,
            or it cannot be trained on a batch of one sample that there will be.

    >>> check_network("lenet", shape=(1, 28, 28), outputs=10)
    >>> check_network("1-190-2", shape=(1,), outputs=1)
    Traceback (most recent call last):
    nablab.errors.UsageError: The network 1-190-2 must begin with 1 and end with 1, \
as in 1-9-1.
    """
    if len(shape) > 1:
        check_image_network(spec, channels=shape[0], size=shape[-1], classes=outputs)
        _check_batches(spec, shape, outputs, samples, batch_sizes)
        return
    widths = parse_widths(spec)
    if widths[0] != shape[0] or widths[-1] != outputs:
        raise UsageError(
            f"The network {spec} must begin with {shape[0]} and end with {outputs}, "
            f"as in {shape[0]}-9-{outputs}."
        )


def count_parameters(spec: str, *, shape: Sequence[int], outputs: int) -> int:
    """Count the trainable weights and biases of such a network; needs no torch.

    Args:
        spec: As in `network`.
        shape: Of one input.
        outputs: Values per sample.

    Raises:
        UsageError: As `check_network`.

    >>> count_parameters("1-190-1", shape=(1,), outputs=1)
    571
    >>> count_parameters("lenet", shape=(1, 28, 28), outputs=10)
    61706
    """
    check_network(spec, shape=shape, outputs=outputs)
    if len(shape) > 1:
        return parameter_count_of(
            spec, channels=shape[0], size=shape[-1], classes=outputs
        )
    return parameter_count(spec)


def _check_batches(
    spec: str,
    shape: Sequence[int],
    outputs: int,
    samples: int,
    batch_sizes: Sequence[int | None],
) -> None:
    def example() -> Tensor:
        import torch

        return torch.zeros(1, *shape)

    build = network_builder(spec, shape=shape, outputs=outputs)
    for size in batch_sizes:
        check_single(build, samples, size, example)
