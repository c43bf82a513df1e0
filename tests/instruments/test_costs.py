"""What a call is said to take, beside what it takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nablab import instruments
from nablab.errors import UsageError
from nablab.instruments.base import footprints, rehearsals
from nablab.instruments.base.footprints import counting_bytes
from nablab.instruments.base.placement import copied

FACTOR = 1.5  # how far an estimate may be off
# A comparison of seconds is repeated: another program may slow one of its two sides.
ATTEMPTS = 3

Network = Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]]


def dense(*widths: int, samples: int = 100) -> Network:
    def make() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        layers = [
            layer
            for pair in pairwise(widths)
            for layer in (nn.Linear(*pair), nn.Tanh())
        ]
        data = torch.randn(samples, widths[0]), torch.randint(0, widths[-1], (samples,))
        return nn.Sequential(*layers[:-1]), data

    return make


def convolutional(channels: int = 4, samples: int = 60) -> Network:
    def make() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, channels, 5, 2),
            nn.Tanh(),
            nn.Conv2d(channels, channels, 5, 2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16 * channels, 10),
        )
        return model, (
            torch.randn(samples, 1, 28, 28),
            torch.randint(0, 10, (samples,)),
        )

    return make


NETWORKS: dict[str, Network] = {
    "dense, 940": dense(20, 30, 10),
    "dense, 90,510": dense(100, 250, 250, 10),
    "dense, 1,033,510": dense(784, 800, 500, 10, samples=64),
    "convolutional, 1,158": convolutional(),
}
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gradient_norm", {}),
    ("gradient_norm", {"per_sample": True}),
    ("gradient_norm", {"batch_size": 4}),
    ("hessian_diagonal", {}),
    ("hessian_eigenvalues", {}),
    ("hessian_eigenvalues", {"operator": "gauss-newton"}),
    ("hessian_trace", {}),
    ("hessian_trace", {"method": "hutch++", "products": 20}),
    ("hessian_trace", {"method": "hutchinson", "dtype": torch.float64}),
    ("input_sensitivity", {}),
    ("interpolate", {}),
    ("loss_plane", {}),
    ("loss_plane", {"resolution": 11, "batched": False}),
    ("match_units", {}),
    ("sharpness", {"definition": "average"}),
    ("sharpness", {"definition": "adaptive"}),
    ("spectral_density", {"probes": 3, "steps": 40}),
)
SEARCH = {"lbfgs_iterations": 8, "max_iterations": 3, "method": "newton-minres"}
SQUARE: tuple[tuple[str, dict[str, Any]], ...] = (  # they hold a matrix
    ("hessian_matrix", {}),
    ("inertia", {"neighbors": 10}),
)


def called(name: str, network: Network, options: dict[str, Any]) -> Callable[[], Any]:
    """Call an instrument on a network, or on it and another one."""
    model, data = network()
    other = another(model)
    arguments: dict[str, Any] = {
        "input_sensitivity": (model, data),
        "interpolate": (model, other, "cross_entropy", data),
        "match_units": (model, other, data),
    }
    given = arguments.get(name, (model, "cross_entropy", data))
    return lambda: getattr(instruments, name)(*given, **options)


def another(model: nn.Module) -> nn.Module:
    other = copied(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(
                parameter.square().mean().sqrt() * torch.randn(parameter.shape)
            )
    return other


@pytest.fixture
def foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short calls are foretold as long ones are, and not made."""
    monkeypatch.setattr(rehearsals, "BRIEF", 0.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_bytes(name: str, options: dict[str, Any], network: Network) -> None:
    model, data = network()
    expected = instruments.cost(name, model, "cross_entropy", data, **options).bytes
    # L-BFGS-B works on NumPy's arrays. Python's own objects are nothing beside those of
    # a larger network.
    arrays = name == "sharpness" and options.get("definition", "keskar") == "keskar"
    call = called(name, network, options)
    call()  # what is imported and remembered at a first call is none of its own
    gc.collect()
    with counting_bytes(arrays=arrays) as taken:
        call()
    assert 1 / FACTOR < expected / taken.peak < FACTOR, (expected, taken.peak)


@pytest.mark.usefixtures("foretold")
@pytest.mark.parametrize(("name", "options"), CALLS, ids=lambda value: str(value))
@pytest.mark.parametrize(
    "size",
    [
        "dense, 940",
        pytest.param("convolutional, 1,158", marks=pytest.mark.slow),
    ],
)
def test_the_bytes_of_small_networks(
    name: str, options: dict[str, Any], size: str
) -> None:
    check_bytes(name, options, NETWORKS[size])


@pytest.mark.usefixtures("foretold")
@pytest.mark.parametrize(
    ("name", "options"),
    [*SQUARE, pytest.param("find_critical_point", SEARCH, marks=pytest.mark.slow)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize(
    "network",
    [
        pytest.param(dense(8, 12, 10), id="dense"),
        pytest.param(convolutional(1), id="convolutional", marks=pytest.mark.slow),
    ],
)
def test_the_bytes_of_whole_matrices(
    name: str, options: dict[str, Any], network: Network
) -> None:
    check_bytes(name, options, network)


@pytest.mark.usefixtures("foretold")
@pytest.mark.parametrize(
    "name",
    [
        "gradient_norm",
        "hessian_eigenvalues",
        "hessian_trace",
        "interpolate",
        "loss_plane",
        pytest.param("sharpness", marks=pytest.mark.slow),
    ],
)
def test_the_bytes_of_a_larger_network(name: str) -> None:
    check_bytes(name, {}, NETWORKS["dense, 90,510"])


@pytest.mark.slow
@pytest.mark.parametrize("size", NETWORKS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient_norm", {}),
        ("hessian_diagonal", {}),
        ("hessian_eigenvalues", {}),
        ("hessian_trace", {}),
        ("interpolate", {}),
        ("spectral_density", {"probes": 3, "steps": 40}),
    ],
    ids=lambda value: str(value),
)
def test_the_seconds(
    name: str,
    options: dict[str, Any],
    size: str,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> None:
    # Both sides by the processor's seconds, which other programs on the machine hardly
    # change.
    monkeypatch.setattr(
        footprints, "time", SimpleNamespace(perf_counter=time.process_time)
    )
    network = trained(NETWORKS[size])
    model, data = network()
    found = []
    for _ in range(ATTEMPTS):
        expected = instruments.cost(
            name, model, "cross_entropy", data, **options
        ).seconds
        call = called(name, network, options)
        found.append(expected / min(seconds_of(call) for _ in range(3)))
        if 1 / FACTOR < found[-1] < FACTOR:
            return
    pytest.fail(f"expected seconds over those taken: {found}")


def trained(network: Network) -> Network:
    """Train the network a little, for a fresh one's spectrum has no gap."""
    model, (x, y) = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return lambda: (model, (x, y))


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


@pytest.mark.slow
def test_a_rehearsal_leaves_everything_as_it_was() -> None:
    model, data = dense(4, 5, 3)()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept, state = list(model.parameters()), torch.get_rng_state()
    for name, options in (*CALLS, *SQUARE, ("sharpness", {})):
        instruments.cost(name, model, "cross_entropy", data, **options)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()
    )
    assert all(
        one is other for one, other in zip(kept, model.parameters(), strict=True)
    )
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.usefixtures("foretold")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hessian_trace", {"products": 20}),
        ("spectral_density", {"probes": 2, "steps": 20}),
        ("loss_plane", {"resolution": 21}),
        ("interpolate", {"count": 61}),
        ("gradient_norm", {"batch_size": 4}),
        ("sharpness", {"definition": "average", "draws": 30}),
        ("input_sensitivity", {}),
        ("hessian_matrix", {}),
    ],
    ids=lambda value: str(value),
)
def test_gradients_that_are_fixed_beforehand_are_foretold(
    name: str, options: dict[str, Any]
) -> None:
    network = dense(5, 8, 3, samples=700)
    model, data = network()
    expected = instruments.cost(name, model, "cross_entropy", data, **options).gradients
    spent = called(name, network, options)().gradients
    assert spent > 0
    assert expected == pytest.approx(spent, rel=0.15, abs=1)


@pytest.mark.usefixtures("foretold")
def test_more_of_an_option_costs_more() -> None:
    model, data = NETWORKS["dense, 940"]()
    few, many = (
        instruments.cost("hessian_trace", model, "cross_entropy", data, products=count)
        for count in (10, 50)
    )
    assert many.gradients - few.gradients == pytest.approx(2 * 40)  # the graph is kept
    assert many.bytes > few.bytes


@pytest.mark.usefixtures("foretold")
def test_products_that_a_search_will_need_follow_the_spectrum() -> None:
    class Loss(nn.Module):
        """A quadratic with a given spectrum."""

        def __init__(self, spectrum: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones_like(spectrum))
            self.spectrum = spectrum

        def forward(self, x: Tensor) -> Tensor:
            return (self.spectrum * self.weight.square()).sum() / 2 + 0 * x.sum()

    apart = torch.linspace(0, 0.1, 400)
    apart[-1] = 1.0
    close = 1 - torch.linspace(0.1, 0, 400) ** 2
    products = []
    for spectrum in (apart, close):
        model = Loss(spectrum)
        loss = instruments.Closure(lambda model, batch: model(batch), samples=len)
        expected = instruments.cost(
            "hessian_eigenvalues", model, loss, torch.ones(2, 1)
        )
        spent = instruments.hessian_eigenvalues(model, loss, torch.ones(2, 1)).gradients
        assert 0.5 < expected.gradients / spent < 2
        products.append(expected.gradients)
        assert any("spectrum" in note for note in expected.notes)
    assert products[1] > 1.5 * products[0]


@pytest.mark.usefixtures("foretold")
def test_what_is_not_known_beforehand_is_said() -> None:
    model, data = dense(4, 5, 3)()
    for name, words in (
        ("sharpness", "line searches"),
        ("match_units", "sweeps"),
        ("find_critical_point", "At most"),
    ):
        options = {"max_iterations": 2} if name == "find_critical_point" else {}
        notes = instruments.cost(name, model, "cross_entropy", data, **options).notes
        assert words in " ".join(notes)
    assert instruments.cost("hessian_trace", model, "cross_entropy", data).notes == ()


def test_a_short_call_is_its_own_rehearsal() -> None:
    network = dense(4, 5, 3)
    model, data = network()
    for name in ("hessian_eigenvalues", "sharpness", "match_units"):
        found = instruments.cost(name, model, "cross_entropy", data)
        assert found.notes == ()
        if name != "match_units":  # the other network of which is made up
            assert found.gradients == called(name, network, {})().gradients


def test_data_are_read_once_and_may_have_names() -> None:
    model, (x, y) = dense(4, 5, 3)()
    once = ((x[k : k + 10], y[k : k + 10]) for k in range(0, 100, 10))
    assert instruments.cost("hessian_trace", model, "cross_entropy", once).seconds > 0
    assert next(once, None) is None
    sets = {"train": (x, y), "test": [(x[:10], y[:10])]}
    one = instruments.cost("interpolate", model, "cross_entropy", (x, y))
    two = instruments.cost("interpolate", model, "cross_entropy", sets)
    assert two.gradients > 1.5 * one.gradients


def test_reading_slow_data_is_part_of_the_cost() -> None:
    model, (x, y) = dense(4, 5, 3)()

    def slow() -> Any:
        time.sleep(0.3)
        yield x, y

    assert (
        instruments.cost("gradient_norm", model, "cross_entropy", slow()).seconds > 0.3
    )


def test_what_the_call_refuses_the_estimate_refuses() -> None:
    model, data = dense(4, 5, 3)()
    with pytest.raises(UsageError, match="too few for xtrace"):
        instruments.cost("hessian_trace", model, "cross_entropy", data, products=3)
    for name, wrong in (
        ("loss_plane", {"resolution": 4}),
        ("loss_plane", {"resolution": 100}),
        ("interpolate", {"low": 1.0, "high": 0.0}),
        ("match_units", {"restarts": -1}),
        ("sharpness", {"radius": -1.0}),
        ("find_critical_point", {"max_iterations": -1}),
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            instruments.cost(name, model, "cross_entropy", data, **wrong)
    with pytest.raises(UsageError, match="runs no model"):
        instruments.cost("trajectory_pca", model, "cross_entropy", data)
