"""Image networks: the reported parameter counts, PyTorch's own arithmetic, and what the
notation refuses.
"""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nablab import models
from nablab.errors import UsageError
from nablab.instruments import match_units


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return (inputs * kernel * kernel + 1) * outputs


def dense(*widths: int) -> int:
    return sum((a + 1) * b for a, b in pairwise(widths))


# The number that was reported, and the layers as they were described: the two must
# agree.
REPORTED = {
    "cnn-25k-middle": (
        25_550,
        conv(1, 10, 4) + conv(10, 20, 4) + dense(320, 50, 100, 10),
    ),
    "cnn-25k-deep": (
        25_570,
        conv(1, 10, 4) + conv(10, 20, 4) + dense(320, 50, 50, 40, 30, 10),
    ),
    "cnn-25k-shallow": (25_621, conv(1, 10, 5) + conv(10, 15, 5) + dense(240, 86, 10)),
    "lenet": (61_706, conv(1, 6, 5) + conv(6, 16, 5) + dense(400, 120, 84, 10)),
    "cnn-343k": (
        342_698,
        conv(1, 32, 5) + conv(32, 32, 5) + conv(32, 64, 5) + dense(1024, 256, 10),
    ),
    "cnn-96k": (96_238, conv(1, 5, 3) + conv(5, 15, 3) + dense(15 * 49, 128, 10)),
    "cnn-207k": (206_922, conv(1, 16, 3) + conv(16, 32, 3) + dense(32 * 49, 128, 10)),
    "cnn-856k": (
        856_074,
        conv(1, 32, 3) + conv(32, 64, 3) + dense(64 * 49, 256, 128, 10),
    ),
    "cnn-205k": (204_778, conv(1, 8, 3) + conv(8, 16, 3) + dense(784, 256, 10)),
    "mlp-500": (397_510, dense(784, 500, 10)),
    "mlp-10-20": (8_280, dense(784, 10, 20, 10)),
    "mlp-500-50": (418_060, dense(784, 500, 50, 10)),
    "mlp-256-128-64": (242_762, dense(784, 256, 128, 64, 10)),
    "mlp-50": (39_760, dense(784, 50, 10)),
    "mlp-2000": (1_590_010, dense(784, 2000, 10)),
    "mlp-5-9": (4_079, dense(784, 5, 9, 10)),
    "mlp-350-600": (491_360, dense(784, 350, 600, 10)),
    # No number was reported for F1: five hidden layers, each with a scale and a shift
    # per unit.
    "keskar-f1": (1_462_794, dense(784, 512, 512, 512, 512, 512, 10) + 5 * 2 * 512),
}
ON_CIFAR = {
    "mlp-512x3": (1_735_178, dense(2352, 512, 512, 512, 10)),
    "mlp-512": (1_209_866, dense(2352, 512, 10)),
}


def counted(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", REPORTED)
def test_reported_parameter_counts(name: str) -> None:
    reported, formula = REPORTED[name]
    assert formula == reported
    assert models.parameter_count_of(name) == reported
    assert counted(models.image_network(name)) == reported


@pytest.mark.parametrize("name", ON_CIFAR)
def test_reported_parameter_counts_on_color_images(name: str) -> None:
    reported, formula = ON_CIFAR[name]
    assert models.parameter_count_of(name, channels=3) == reported == formula
    assert counted(models.image_network(name, channels=3)) == reported


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 7)])
@pytest.mark.parametrize("name", models.image_networks())
def test_every_name_gives_logits(
    name: str, channels: int, size: int, classes: int
) -> None:
    torch.manual_seed(0)
    network = models.image_network(name, channels=channels, size=size, classes=classes)
    images = torch.rand(
        3, channels, size, size, generator=torch.Generator().manual_seed(0)
    )
    logits = network.eval()(images)
    assert logits.shape == (3, classes)
    assert bool((logits < 0).any())
    assert bool((logits > 0).any())
    assert not torch.allclose(logits.exp().sum(1), torch.ones(3))  # no softmax
    assert counted(network) == models.parameter_count_of(
        name, channels=channels, size=size, classes=classes
    )


def test_lenet_is_what_its_notation_says() -> None:
    expected = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    assert str(models.image_network("lenet")) == str(expected)
    torch.manual_seed(3)
    network = models.image_network("lenet")
    torch.manual_seed(3)
    first = nn.Conv2d(1, 6, 5, padding=2)  # the weights start as PyTorch's
    assert torch.equal(network[0].weight, first.weight)


def test_every_layer_of_the_notation_stands_where_it_is_written() -> None:
    network = models.image_network(
        "conv4k3s2-bn-pool3-drop.25-conv5k1x2-mean2-mean-7-bn-drop0.5",
        activation="tanh",
    )
    expected = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.MaxPool2d(3),
        nn.Dropout(0.25),
        nn.Conv2d(4, 5, 1),
        nn.Tanh(),
        nn.Conv2d(5, 5, 1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 7),
        nn.BatchNorm1d(7),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(7, 10),
    )
    assert str(network) == str(expected)


def test_widths_are_the_dense_network_behind_a_flatten() -> None:
    torch.manual_seed(1)
    flat = models.dense("784-30x2-10", "relu")
    torch.manual_seed(1)
    network = models.image_network("784-30x2-10")
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images), flat(images.flatten(1)))
    assert models.parameter_count_of("784-30x2-10") == models.parameter_count(
        "784-30x2-10"
    )
    assert str(models.image_network("flatten-30x2")) == str(network)
    assert str(models.image_network("784-10")) == str(
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    )


convolutions = st.builds(
    lambda filters, kernel, padding, stride, bn: (
        f"conv{filters}k{kernel}p{padding}s{stride}{bn}"
    ),
    *(
        st.integers(1, 6),
        st.integers(1, 5),
        st.integers(0, 3),
        st.integers(1, 3),
        st.sampled_from(["", "-bn"]),
    ),
)
widths = st.builds(
    lambda units, bn: f"{units}{bn}",
    st.integers(11, 30),
    st.sampled_from(["", "-bn", "x2"]),
)
front = st.lists(
    st.one_of(convolutions, st.sampled_from(["pool", "pool3", "mean2", "drop0.1"])),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    front,
    st.lists(widths, max_size=3),
    st.integers(1, 3),
    st.integers(4, 20),
    st.integers(1, 9),
)
def test_a_notation_gives_a_network_that_runs_or_an_error_about_pixels(
    first: list[str], last: list[str], channels: int, size: int, classes: int
) -> None:
    spec = "-".join([*first, "flatten", *last])
    shape = {"channels": channels, "size": size, "classes": classes}
    side = size
    for token in first:
        numbers = [int(n) for n in re.findall(r"\d+", token)] or [2]
        if token.startswith("conv"):
            side = (side + 2 * numbers[2] - numbers[1]) // numbers[3] + 1
        elif token.startswith(("pool", "mean")):
            side //= numbers[0]
        if side < 1:
            with pytest.raises(UsageError, match="leaves no pixel"):
                models.image_network(spec, **shape)
            return
    network = models.image_network(spec, **shape)
    assert network.eval()(torch.zeros(2, channels, size, size)).shape == (2, classes)
    assert counted(network) == models.parameter_count_of(
        spec, channels=channels, size=size, classes=classes
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "lenett",
            r"no image network 'lenett'. Did you mean 'lenet'\? Choices: .*keskar-f1",
        ),
        ("", "no image network ''"),
        (
            "conv6k5-pol-120",
            r"'pol' in 'conv6k5-pol-120' is not a layer. Did you mean 'pool'\?",
        ),
        ("conv6-120", "no image network 'conv6-120'"),
        ("784-500-11", "must end with 10, the number of classes, as in 784-500-10"),
        ("784", "must end with 10"),
        (
            "785-500-10",
            "begins with 785, but images of 1 x 28 x 28 have 784 values: "
            "begin with 784",
        ),
        ("conv6k5-84-10", "leave out the last -10"),
        (
            "conv6k5-pool-conv6k15",
            r"leaves no pixel: only 12 x 12 of the image's 28 x 28 arrive.*p2",
        ),
        (
            "pool5-pool5-pool",
            "'pool' in 'pool5-pool5-pool' leaves no pixel: only 1 x 1",
        ),
        ("mean4-mean4-mean2", "'mean2' in 'mean4-mean4-mean2' leaves no pixel"),
        ("flatten-conv6k5", "needs an image, but a width or flatten comes before it"),
        ("conv6k5-120-pool", "'pool' in .* needs an image"),
        ("120-mean-10", "begins with 120"),
        ("flatten-20-mean", "'mean' in .* needs an image"),
        ("flatten-flatten", "'flatten' in .* needs an image"),
        ("bn-120", "'bn' in 'bn-120' must stand right after"),
        ("conv3k3-pool-bn", "must stand right after"),
        ("conv3k3-bn-bn", "must stand right after"),
        ("conv3k3p1p2", "gives p or s twice"),
        ("conv0k3", "must be 1 or more"),
        ("conv3k0", "must be 1 or more"),
        ("conv3k3s0", "must be 1 or more"),
        ("pool0", "the window must be 1 or more"),
        ("flatten-0", "from 1 to 100,000 units"),
        ("conv3k3-drop1.5", "above 0 and below 1"),
        ("conv3k3-drop0.0", "above 0 and below 1"),
    ],
)
def test_a_wrong_notation_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.image_network(spec)
    with pytest.raises(UsageError, match=message):
        models.parameter_count_of(spec)


def test_impossible_images_and_activations() -> None:
    with pytest.raises(UsageError, match="channels=0 is impossible: it must be from 1"):
        models.image_network("lenet", channels=0)
    with pytest.raises(UsageError, match="classes=0 is impossible"):
        models.parameter_count_of("lenet", classes=0)
    with pytest.raises(UsageError, match="Did you mean 'relu'"):
        models.image_network("784-10", activation="rellu")  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match="leaves no pixel: only 4 x 4 of the image's 8 x 8"
    ):
        models.image_network("lenet", size=8)


@pytest.mark.parametrize("name", ["lenet", "cnn-25k-middle", "mlp-10-20", "fast"])
def test_units_can_be_matched(name: str) -> None:
    torch.manual_seed(0)
    a, b = models.image_network(name), models.image_network(name)
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = match_units(a, b, restarts=0)
    assert found.distance_after < found.distance_before
    torch.testing.assert_close(
        found.module.eval()(images), b.eval()(images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["lenet", "mlp-10-20"])
def test_replicas_run_under_vmap(name: str) -> None:
    networks = [models.image_network(name) for _ in range(3)]
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    parameters, _ = torch.func.stack_module_state(networks)  # type: ignore[arg-type]
    together = torch.func.vmap(
        lambda own: torch.func.functional_call(networks[0], own, (images,))
    )(parameters)
    apart = torch.stack([network(images) for network in networks])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_counting_needs_no_torch() -> None:
    program = (
        "import sys; from nablab import models; models.parameter_count_of('lenet'); "
        "models.image_networks(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
