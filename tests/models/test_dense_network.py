"""Dense networks: the published parameter counts, PyTorch's own arithmetic, the exact
sawtooth.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nablab import models
from nablab.data.functions.targets import sawtooth
from nablab.errors import UsageError

# Trained in published coursework, with the number of parameters that was reported for
# each.
PUBLISHED = {
    "1-5-10-10-10-10-10-5-1": 571,
    "1-10-18-15-4-1": 572,
    "1-190-1": 571,
    "1-10-20x6-1": 2361,
    "1-20-25-35-1": 1511,
    "1-20-30-1": 701,
}


@pytest.mark.parametrize(("widths", "count"), PUBLISHED.items())
def test_published_parameter_counts(widths: str, count: int) -> None:
    assert models.parameter_count(widths) == count
    assert sum(p.numel() for p in models.dense(widths).parameters()) == count


@settings(max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=6))
def test_the_formula_counts_what_torch_counts(widths: list[int]) -> None:
    network = models.dense(widths)
    assert models.parameter_count(widths) == sum(
        p.numel() for p in network.parameters()
    )
    assert network(torch.zeros(3, widths[0])).shape == (3, widths[-1])
    assert models.parse_widths("-".join(map(str, widths))) == tuple(widths)


def test_repeats_are_written_with_x() -> None:
    assert models.parse_widths("1-10-20x6-1") == (1, 10, 20, 20, 20, 20, 20, 20, 1)


@pytest.mark.parametrize(
    "widths",
    ["", "1", "1-", "1-a-1", "1-0-1", "1--1", "1-999999-1", [1], [1, 0], "1-5x0"],
)
def test_widths_that_are_no_network(widths: object) -> None:
    with pytest.raises(UsageError, match=r"not a list of layer widths|not a network"):
        models.parse_widths(widths)  # type: ignore[arg-type]


def test_weights_start_as_pytorch_starts_them_and_the_last_layer_is_bare() -> None:
    torch.manual_seed(3)
    network = models.dense("1-4-2-1", "tanh")
    torch.manual_seed(3)
    first, second, third = (
        torch.nn.Linear(1, 4),
        torch.nn.Linear(4, 2),
        torch.nn.Linear(2, 1),
    )
    x = torch.randn(5, 1)
    torch.testing.assert_close(
        network(x), third(second(first(x).tanh()).tanh()), rtol=0, atol=0
    )


def test_an_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'leaky_relu'"):
        models.dense("1-2-1", "leakyrelu")  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [1, 2, 5, 10])
def test_the_sawtooth_network_is_exact(depth: int) -> None:
    network = models.sawtooth_network(depth)
    widths = [m.out_features for m in network if isinstance(m, torch.nn.Linear)]
    assert widths == [2] * depth + [1]
    assert sum(p.numel() for p in network.parameters()) == 6 * depth + 1
    dyadic = torch.arange(2 ** (depth + 3) + 1).float()[:, None] / 2 ** (depth + 3)
    truth = torch.from_numpy(sawtooth(depth)(dyadic.double().numpy()))
    with torch.no_grad():
        assert torch.equal(network(dyadic).double(), truth)
        x = torch.rand(
            1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        exact = torch.from_numpy(sawtooth(depth)(x.numpy()))
        assert (network.double()(x) - exact).abs().max() < 2**depth * np.finfo(
            np.float64
        ).eps


def test_a_sawtooth_of_no_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1, not 0"):
        models.sawtooth_network(0)
