"""Networks by the shape of their inputs."""

from __future__ import annotations

import pytest
import torch

from nablab import models
from nablab.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "shape", "outputs", "parameters"),
    [
        ("1-5-10x5-5-1", (1,), 1, 571),
        ("lenet", (1, 28, 28), 10, 61_706),
        ("784-10-20-10", (1, 28, 28), 10, 8_280),
        ("784-500-50-10", (1, 28, 28), 10, 418_060),
        ("784-256-128-64-10", (1, 28, 28), 10, 242_762),
    ],
)
def test_networks_have_the_published_sizes(
    spec: str, shape: tuple[int, ...], outputs: int, parameters: int
) -> None:
    network = models.network(spec, shape=shape, outputs=outputs)
    assert models.count_parameters(spec, shape=shape, outputs=outputs) == parameters
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(3, *shape)).shape == (3, outputs)


def test_the_activation_is_the_one_asked_for() -> None:
    for spec, shape in (("1-3-1", (1,)), ("flatten-3", (1, 2, 2))):
        network = models.network(spec, shape=shape, outputs=1, activation="tanh")
        assert [type(part).__name__ for part in network][-2] == "Tanh"


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(
        UsageError,
        match=r"The network 2-3-1 must begin with 1 and end with 1, as in 1-9-1",
    ):
        models.network("2-3-1", shape=(1,), outputs=1)
    with pytest.raises(
        UsageError, match=r"begins with 783, but images of 1 x 28 x 28 have 784"
    ):
        models.check_network("783-9-10", shape=(1, 28, 28), outputs=10)
    with pytest.raises(UsageError, match="must begin with 1 and end with 2"):
        models.count_parameters("1-3-1", shape=(1,), outputs=2)
