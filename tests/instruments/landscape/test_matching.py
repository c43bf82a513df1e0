"""Matching of hidden units: functions kept, permuted copies recovered."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nablab.errors import UsageError
from nablab.instruments.base.measurement import plain
from nablab.instruments.landscape.matching import Matching, _Search, match_units
from nablab.instruments.landscape.permutations import Permutations, find_specification


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """A network whose stream adds up, so that it needs a specification."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(3, 6)
        self.block = nn.Linear(6, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = torch.relu(self.into(x))
        return self.out(stream + torch.tanh(self.block(stream)))


RESIDUAL = {
    "stream": [
        *[
            ("into.weight", 0),
            ("into.bias", 0),
            ("block.weight", 0),
            ("block.weight", 1),
        ],
        *[("block.bias", 0), ("out.weight", 1)],
    ]
}


def dense() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 2)
    )


def deep() -> nn.Sequential:
    widths = [1, *[20] * 6, 1]
    layers = [
        part
        for pair in itertools.pairwise(widths)
        for part in (nn.Linear(*pair), nn.ReLU())
    ]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)
        ),
        nn.Sequential(
            nn.Conv2d(6, 5, 3, bias=False),
            nn.BatchNorm2d(5),
            nn.PReLU(5),
            nn.Dropout2d(0.3),
        ),
        *(
            nn.Flatten(),
            nn.BatchNorm1d(20),
            nn.Linear(20, 7),
            nn.LayerNorm(7),
            nn.GELU(),
            nn.Linear(7, 3),
        ),
    )


def pooled() -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Conv1d(1, 5, 3),
            nn.LeakyReLU(),
            nn.Conv1d(5, 4, 2),
            nn.PReLU(),
            nn.AdaptiveAvgPool1d(1),
        ),
        *(nn.Flatten(), nn.Linear(4, 3), nn.LogSoftmax(-1)),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "dense": (dense, (3,), None),
    "convolutional": (convolutional, (2, 8, 8), None),
    "pooled": (pooled, (1, 12), None),
    "images first": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(12, 6), nn.Flatten(), nn.SiLU(), nn.Linear(6, 2)
        ),
        (3, 4),
        None,
    ),
    "residual": (Residual, (3,), RESIDUAL),
}


@pytest.fixture(params=list(CASES))
def case(
    request: pytest.FixtureRequest,
) -> tuple[Callable[[int], nn.Module], Tensor, Any]:
    build, shape, specification = CASES[request.param]
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(9))
    return lambda seed: network(build, seed), x, specification


def network(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network in eval mode whose norms have their own statistics."""
    torch.manual_seed(seed)
    model = build().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.PReLU):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, 0.1, 1)
    return model


def shuffled(
    model: nn.Module, specification: Any, seed: int = 5
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy with its units in random orders."""
    plan = Permutations(model, specification or find_specification(model))
    draw = np.random.default_rng(seed)
    orders = {group: draw.permutation(size) for group, size in plan.sizes.items()}
    moved = copy.deepcopy(model)
    moved.load_state_dict(plan.apply(model.state_dict(), orders))
    return moved, orders


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.double()(x.double())


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_the_function_is_kept(case: Any, method: Any) -> None:
    build, x, specification = case
    a, b = build(1), build(2)
    result = match_units(a, b, x, method=method, specification=specification)
    expected, found = outputs(b, x), outputs(result.module, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert any(
        (order != np.arange(len(order))).any() for order in result.permutations.values()
    )
    assert not torch.equal(next(result.module.parameters()), next(b.parameters()))


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_permuted_copy_is_recovered(case: Any, method: Any, seed: int) -> None:
    build, x, specification = case
    model = build(seed)
    moved, orders = shuffled(model, specification, seed)
    torch.testing.assert_close(
        outputs(copy.deepcopy(moved), x), outputs(copy.deepcopy(model), x)
    )
    result = match_units(model, moved, x, method=method, specification=specification)
    assert result.distance_before > 1
    assert result.distance_after == 0
    assert result.similarity_after == pytest.approx(1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(result.module.state_dict()[name], tensor)
    for group, order in orders.items():
        np.testing.assert_array_equal(
            order[result.permutations[group]], np.arange(len(order))
        )


def test_a_deep_narrow_network_is_recovered() -> None:
    """Descent from the order as it is may stop far away; other starts do not."""
    starts = set()
    for seed in range(8):
        torch.manual_seed(seed)
        widths = [1, 4, 4, 4, 4, 1]
        layers = [
            part
            for pair in itertools.pairwise(widths)
            for part in (nn.Linear(*pair), nn.ReLU())
        ]
        model = nn.Sequential(*layers[:-1])
        moved, _ = shuffled(model, None, seed)
        result = match_units(model, moved, seed=seed)
        assert result.distance_after == 0
        starts.add(result.start)
    assert starts == {"identity", "forward"}


@pytest.mark.parametrize("backward", [False, True])
def test_units_of_a_copy_are_found_layer_by_layer(backward: bool) -> None:
    """Each layer by the weights whose other units are in order; no descent after."""
    for seed in range(8):
        torch.manual_seed(seed)
        widths = [2, 4, 4, 4, 4, 2]
        layers = [
            part
            for pair in itertools.pairwise(widths)
            for part in (nn.Linear(*pair), nn.ReLU())
        ]
        model = nn.Sequential(*layers[:-1])
        moved, orders = shuffled(model, None, seed)
        a, b = (
            {name: p.detach().double() for name, p in m.named_parameters()}
            for m in (model, moved)
        )
        plan = Permutations(model, find_specification(model))
        search = _Search(plan, a, b, np.random.default_rng(0), sweeps=1)
        found = search._greedy(list(orders)[::-1] if backward else list(orders))
        for group, order in orders.items():
            np.testing.assert_array_equal(order[found[group]], np.arange(4))


def test_one_hidden_layer_is_matched_in_the_best_of_all_orders() -> None:
    torch.manual_seed(0)
    a, b = (
        nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        for _ in range(2)
    )
    result = match_units(a, b, restarts=0)
    every = []
    for order in itertools.permutations(range(5)):
        index = torch.tensor(order)
        parts = (
            b[0].weight[index] - a[0].weight,
            b[0].bias[index] - a[0].bias,
            b[2].weight[:, index] - a[2].weight,
        )
        rest = (b[2].bias - a[2].bias).square().sum()
        every.append(
            float((sum(part.square().sum() for part in parts) + rest).detach().sqrt())
        )
    assert result.distance_after == pytest.approx(min(every))
    assert result.distance_before == pytest.approx(every[0])
    assert result.converged


def test_distances_and_similarities_are_those_of_the_modules() -> None:
    a, b = network(convolutional, 1), network(convolutional, 2)
    result = match_units(a, b)

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])

    for which, model in (("before", b), ("after", result.module)):
        assert getattr(result, f"distance_{which}") == pytest.approx(
            float((flat(a) - flat(model)).norm())
        )
        cosine = torch.nn.functional.cosine_similarity(
            flat(a), flat(model), dim=0
        ).item()
        assert getattr(result, f"similarity_{which}") == pytest.approx(cosine)
    for name, (before, after) in result.distances.items():
        own = a.get_parameter(name)
        assert before == pytest.approx(
            float((own - b.get_parameter(name)).norm().detach()), rel=1e-5
        )
        assert after == pytest.approx(
            float((own - result.module.get_parameter(name)).norm().detach()), rel=1e-5
        )
    assert result.distance_after < result.distance_before


def test_no_single_layer_can_be_improved_after_convergence() -> None:
    a, b = network(dense, 3), network(dense, 4)
    result = match_units(a, b, seed=1)
    assert result.converged
    plan = Permutations(b, find_specification(b))
    weights = {name: p.detach().double() for name, p in b.named_parameters()}
    own = {name: p.detach().double() for name, p in a.named_parameters()}

    def distance(orders: dict[str, Any]) -> float:
        moved = plan.apply(weights, orders)
        return sum(float((own[name] - moved[name]).square().sum()) for name in own)

    best = distance(result.permutations)
    assert best == pytest.approx(result.distance_after**2)
    draw = np.random.default_rng(0)
    for group, order in result.permutations.items():
        for _ in range(200):
            assert (
                distance({**result.permutations, group: draw.permutation(order)})
                >= best - 1e-12
            )


def test_a_group_on_both_axes_of_a_weight_is_judged_by_the_distance() -> None:
    """There the assignment is no longer exact: followed blindly, it runs in circles."""
    for seed in range(20):
        a, b = network(Residual, seed), network(Residual, seed + 100)
        result = match_units(a, b, specification=RESIDUAL, restarts=0)
        assert result.converged
        assert result.distance_after <= result.distance_before


def test_other_points_of_the_path_move_with_the_network() -> None:
    model = network(convolutional, 0)
    moved, _ = shuffled(model, None)
    result = match_units(model, moved)
    earlier = {name: tensor + 1 for name, tensor in moved.state_dict().items()}
    for name, tensor in result.permute(earlier).items():
        torch.testing.assert_close(tensor, model.state_dict()[name] + 1)
    with pytest.raises(UsageError, match="no tensor in the model 'nothing'"):
        result.permute({"nothing": torch.zeros(1)})


def test_more_starts_never_match_worse_and_the_seed_decides() -> None:
    a, b = network(dense, 1), network(dense, 2)
    few, many, again = (match_units(a, b, seed=3, restarts=n) for n in (0, 20, 20))
    assert many.distance_after <= few.distance_after
    assert many.to_dict() == again.to_dict()


def test_too_few_sweeps_are_said() -> None:
    a, b = network(deep, 1), network(deep, 2)
    assert not match_units(a, b, sweeps=1, restarts=0).converged
    assert match_units(a, b, sweeps=50).converged


def test_activations_are_those_of_all_batches() -> None:
    a, b = network(dense, 1), network(dense, 2)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    whole = match_units(a, b, x, method="activations")
    assert whole.start == "activations"
    # Two networks are measured, and their functions compared.
    assert whole.gradients == pytest.approx(4 / 3)
    for data in ([(x[:13], 0), (x[13:], 0)], (x, torch.zeros(20, 2)), iter([(x, 0)])):
        found = match_units(a, b, data, method="activations").permutations
        assert plain(found) == plain(whole.permutations)
    for part in (x[:13], x[13:]):
        assert plain(
            match_units(a, b, part, method="activations").permutations
        ) != plain(whole.permutations)


def test_nothing_given_is_changed() -> None:
    a, b = network(convolutional, 1), network(convolutional, 2)
    b.train()
    before = [copy.deepcopy(m.state_dict()) for m in (a, b)]
    state = torch.get_rng_state()
    result = match_units(
        a, b, torch.randn(4, 2, 8, 8, generator=torch.Generator()), method="activations"
    )
    assert torch.equal(torch.get_rng_state(), state)
    for model, kept in zip((a, b), before, strict=True):
        assert all(
            torch.equal(model.state_dict()[name], tensor)
            for name, tensor in kept.items()
        )
        assert not any(layer._forward_hooks for layer in model.modules())
    assert not a.training
    assert b.training
    assert result.module.training
    assert not {id(p) for p in result.module.parameters()} & {
        id(p) for p in b.parameters()
    }


def test_the_result_is_plain_json_and_has_a_figure() -> None:
    result: Matching = match_units(network(dense, 1), network(dense, 2))
    content = json.loads(json.dumps(result.to_dict()))
    assert len(content["permutations"]["0"]) == 8
    assert not {"module", "_plan"} & set(content)
    (ax,) = result.plot().axes
    assert ax.get_xlabel() == "distance between the networks' weights"
    assert [label.get_text() for label in ax.get_yticklabels()] == list(
        result.distances
    )
    before = next(line for line in ax.get_lines() if line.get_label() == "before")
    assert list(before.get_xdata()) == [pair[0] for pair in result.distances.values()]


def test_the_specification_of_a_convolutional_network() -> None:
    found = find_specification(convolutional())
    assert list(found) == ["0.0", "1.0", "4"]
    assert found["1.0"] == [
        *[
            ("1.0.weight", 0),
            ("1.1.weight", 0),
            ("1.1.bias", 0),
            ("1.1.running_mean", 0),
        ],
        *[("1.1.running_var", 0), ("1.2.weight", 0), ("3.weight", 0), ("3.bias", 0)],
        *[("3.running_mean", 0), ("3.running_var", 0), ("4.weight", 1)],
    ]
    assert Permutations(convolutional(), found).sizes == {"0.0": 6, "1.0": 5, "4": 7}


# --- bad input ------------------------------------------------------------------------


def shared() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Residual(), r"units of a Residual cannot be derived.*specification=\{group"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.Linear(2, 1)),
            r"Layer '1' \(Unflatten",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(6, 2)),
            r"Layer '1' \(Linear.*may mix or reorder",
        ),
        (
            nn.Sequential(nn.Linear(1, 8), nn.AvgPool1d(2), nn.Linear(4, 1)),
            r"Layer '1' \(AvgPool1d",
        ),
        (
            nn.Sequential(nn.Linear(1, 4), nn.Flatten(), nn.Linear(8, 1)),
            r"takes 8 inputs, but 4 units",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)),
            r"Layer '1' \(Conv2d.*groups=2",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(4, 1)),
            r"Layer '1' \(Flatten",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(6, 1)),
            r"takes 6 inputs, but 4 units",
        ),
        (shared(), r"share weights"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.ReLU()), r"no hidden layer"),
    ],
)
def test_models_whose_units_cannot_be_told_are_refused(
    model: nn.Module, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        match_units(model, copy.deepcopy(model))


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        (
            {"h": [("0.weigth", 0)]},
            r"no parameter or buffer for the group 'h'.*Did you mean '0.weight'",
        ),
        (
            {"h": [("0.weight", 2)]},
            r"'0.weight' of group 'h' has no axis 2: its shape is \(8, 3\)",
        ),
        ({"h": []}, r"group 'h' of the specification lists no parameter"),
        (
            {"h": [("0.weight", 0), ("2.weight", 0)]},
            r"Axis 0 of '0.weight' has 8 entries.*the 7 units",
        ),
        (
            {"h": [("0.bias", 0)], "g": [("0.bias", 0)]},
            r"Axis 0 of '0.bias' is listed twice",
        ),
    ],
)
def test_wrong_specifications_are_refused(specification: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        match_units(dense(), dense(), specification=specification)


FORGETFUL = {
    "a bias": {
        "h": [("0.weight", 0), ("2.weight", 1)],
        "g": [("2.weight", 0), ("2.bias", 0), ("4.weight", 1)],
    },
    "the next layer": {"h": [("0.weight", 0), ("0.bias", 0)]},
    "all but the weights": {"h": [("0.weight", 0)], "g": [("2.weight", 0)]},
}


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("forgotten", FORGETFUL)
def test_a_specification_that_changes_the_function_is_refused(
    forgotten: str, method: Any
) -> None:
    a, b = network(dense, 1), network(dense, 3)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        UsageError, match=r"makes another function of the network: on the first batch"
    ):
        match_units(a, b, x, method=method, specification=FORGETFUL[forgotten])


def test_forgotten_running_statistics_are_another_function() -> None:
    def build() -> nn.Sequential:
        model = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)
        )
        model(torch.randn(50, 3))
        return model.eval()

    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    a, b = network(build, 1), network(build, 2)
    whole = find_specification(a)
    assert not match_units(a, b, x, specification=whole).notes
    without = {
        group: [e for e in entries if "running" not in e[0]]
        for group, entries in whole.items()
    }
    with pytest.raises(UsageError, match="It leaves out a parameter or buffer"):
        match_units(a, b, x, specification=without)


def test_without_data_a_specification_of_ones_own_is_said_to_be_unchecked() -> None:
    whole = find_specification(dense())
    unchecked = match_units(network(dense, 1), network(dense, 3), specification=whole)
    assert "was not checked" in unchecked.notes[0]
    assert "Give data" in unchecked.notes[0]
    assert not match_units(network(dense, 1), network(dense, 3)).notes
    x = torch.randn(5, 3)
    assert not match_units(
        network(dense, 1), network(dense, 3), x, specification=whole
    ).notes


INFINITE = torch.full((2, 3), math.inf)


def diverged() -> nn.Sequential:
    model = dense()
    with torch.no_grad():
        model[2].bias[1] = math.nan
    return model


@pytest.mark.parametrize(
    ("a", "b", "data", "options", "message"),
    [
        (
            dense(),
            nn.Sequential(nn.Linear(3, 9)),
            None,
            {},
            r"differ in '0.weight': \(8, 3\) and \(9, 3\)",
        ),
        (
            nn.Sequential(nn.Linear(3, 8)),
            dense(),
            None,
            {},
            r"differ in '2.weight': no such parameter and",
        ),
        (
            dense(),
            diverged(),
            None,
            {},
            r"'2.bias' holds values that are NaN or infinite",
        ),
        (
            dense(),
            dense(),
            None,
            {"method": "weight"},
            r"Did you mean 'weights'\? Choices: weights, activations",
        ),
        (dense(), dense(), None, {"method": "activations"}, r"needs data"),
        (dense(), dense(), [], {"method": "activations"}, r"The data contain no batch"),
        (
            dense(),
            dense(),
            torch.full((2, 3), math.inf),
            {"method": "activations"},
            r"activations of '0' are NaN",
        ),
        (dense(), dense(), None, {"restarts": -1}, r"restarts=-1"),
        (dense(), dense(), None, {"sweeps": 0}, r"sweeps=0"),
    ],
)
def test_bad_input_is_refused(
    a: Any, b: Any, data: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        match_units(a, b, data, **options)


def test_a_group_without_a_layer_has_no_activations() -> None:
    specification = {"h": [("0.bias", 0), ("2.weight", 1)]}
    with pytest.raises(
        UsageError, match=r"lists no weight along axis 0.*method='weights'"
    ):
        match_units(
            dense(),
            dense(),
            torch.zeros(1, 3),
            method="activations",
            specification=specification,
        )


def test_activations_cost_four_forward_passes_at_most() -> None:
    class Size:
        parameters = 100

    assert match_units.expected(
        Size(), method="activations"
    ).gradients == pytest.approx(4 / 3)
    assert match_units.expected(Size()).gradients == 0
