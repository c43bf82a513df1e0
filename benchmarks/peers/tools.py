"""The peers of the instruments.

They are PyHessian, curvlinops, loss-landscapes, and plain PyTorch.
"""

from __future__ import annotations

import importlib
import time
import warnings
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contest import OURS, Race, Side
from benchmarks.instrument_cases import (
    images,
    small_networks,
    trained_dense,
    trained_lenet,
    trained_perceptron,
)
from benchmarks.peers import Absent
from benchmarks.table import Table, spread_text
from benchmarks.timing import Spread
from nablab import instruments

PAIRS = 10
STEPS = 15  # products of the spectral density for each starting vector
PROBES = 2  # starting vectors
RESOLUTION = 25
ROWS_NETWORKS = 2  # of a hundred networks, those that the loop of double backwards does
LOOP_INPUTS = 50  # of a thousand inputs, those that the loop over inputs does


def races(*, quick: bool) -> list[Race]:
    """List every comparison; ``quick`` shrinks the work, not the sides."""
    return [
        _hessians(quick),
        _eigenpairs(quick),
        _density(quick),
        _jacobians(quick),
        _plane(
            quick,
            "784-13-10 (10,345 parameters), 1,000 images",
            trained_perceptron(),
            "cross_entropy",
            True,
        ),
        _plane(
            quick,
            "1-100-100-1 (10,401 parameters), 300 points",
            trained_dense(),
            "mse",
            False,
        ),
    ]


def peer(package: str, *, name: str) -> Any:
    """Import a peer.

    Raises:
        Absent: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old packages warn of their own future
            return importlib.import_module(package)
    except ImportError as error:
        raise Absent(f"{name} is not installed ({error})") from error


def _hessians(quick: bool) -> Race:
    count = 4 if quick else 100
    networks, (x, y) = small_networks(count)
    replicas = instruments.Replicas.stack(networks)

    def rows(network: nn.Module) -> Tensor:
        network = network.double()
        parameters = list(network.parameters())
        loss = F.mse_loss(network(x.double()), y.double())
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        slope = torch.cat([part.flatten() for part in slopes])
        found = [
            torch.autograd.grad(entry, parameters, retain_graph=True) for entry in slope
        ]
        return torch.stack(
            [torch.cat([part.flatten() for part in row]) for row in found]
        )

    def loop() -> None:
        for network in networks[:ROWS_NETWORKS]:
            torch.linalg.eigvalsh(rows(network))

    def vmap() -> None:
        for network in networks[:ROWS_NETWORKS]:
            loss = partial(_loss_at, network, x.double(), y.double())
            parts = torch.func.hessian(loss)(
                {name: value.double() for name, value in network.named_parameters()}
            )
            blocks = [
                torch.cat([parts[a][b].reshape(p.numel(), -1) for b in parts[a]], dim=1)
                for a, p in network.named_parameters()
            ]
            torch.linalg.eigvalsh(torch.cat(blocks))

    return Race(
        f"exact Hessians and inertia of {count} networks of 571 parameters",
        {
            OURS: lambda: Side(
                lambda: instruments.inertia(replicas, "mse", (x, y), neighbors=0)
            ),
            "loop of double backwards": lambda: Side(loop, ROWS_NETWORKS / count),
            "torch.func.hessian": lambda: Side(vmap, ROWS_NETWORKS / count),
        },
        {"loop of double backwards": ("15x", "60x")},
    )


def _eigenpairs(quick: bool) -> Race:
    model, (x, y) = trained_lenet()
    if quick:
        x, y = x[:100], y[:100]
    notes: list[str] = []
    # replaced by what PyHessian reaches, so that residuals are equal
    equal = {"tolerance": 1e-4}

    def pyhessian() -> Side:
        tool = peer("pyhessian", name="PyHessian")

        def pairs() -> Any:
            torch.manual_seed(0)
            return _pyhessian(tool, model, x, y).eigenvalues(
                maxIter=1000, tol=1e-4, top_n=PAIRS
            )

        values, vectors = pairs()
        equal["tolerance"] = _worst_residual(model, (x, y), values, vectors) / abs(
            values[0]
        )
        notes.append(
            "PyHessian with tol=1e-4 leaves residuals of up to "
            f"{equal['tolerance']:.1g} of the largest eigenvalue; nablab and eigsh are "
            "asked for no larger ones."
        )
        return Side(pairs)

    def ours() -> Any:
        options = {"count": PAIRS, "which": "magnitude", "certify": False, **equal}
        return instruments.hessian_eigenvalues(
            model, "cross_entropy", (x, y), **options
        )

    def scipy() -> Side:
        tool = peer("curvlinops", name="curvlinops")
        from scipy.sparse.linalg import eigsh

        operator = _curvlinops(tool, model, x, y).to_scipy()
        return Side(
            lambda: eigsh(operator, k=PAIRS, which="LM", tol=equal["tolerance"])
        )

    return Race(
        f"top {PAIRS} eigenpairs of LeNet's Hessian, {len(x):,} images",
        {
            "PyHessian": pyhessian,
            OURS: lambda: Side(ours),
            "curvlinops with scipy's eigsh": scipy,
        },
        {"PyHessian": ("2x", "5x")},
        notes,
    )


def _density(quick: bool) -> Race:
    model, (x, y) = trained_lenet()
    if quick:
        x, y = x[:100], y[:100]
    steps = 10 if quick else STEPS

    def pyhessian() -> Side:
        tool = peer("pyhessian", name="PyHessian")
        return Side(
            lambda: _with_eig(
                lambda: _pyhessian(tool, model, x, y).density(iter=steps, n_v=PROBES)
            )
        )

    def curvlinops() -> Side:
        tool = peer("curvlinops", name="curvlinops")
        spectrum = peer("curvlinops.papyan2020traces.spectrum", name="curvlinops")
        operator = _curvlinops(tool, model, x, y)
        return Side(
            lambda: [spectrum.fast_lanczos(operator, steps) for _ in range(PROBES)]
        )

    return Race(
        f"spectral density of LeNet's Hessian, {PROBES} x {steps} products, {len(x):,} "
        "images",
        {
            OURS: lambda: Side(
                lambda: instruments.spectral_density(
                    model, "cross_entropy", (x, y), probes=PROBES, steps=steps
                )
            ),
            "PyHessian": pyhessian,
            "curvlinops": curvlinops,
        },
        {"PyHessian": ("1.5x", "3x"), "curvlinops": ("1.5x", "3x")},
        [
            "PyHessian calls torch.eig, which PyTorch removed; it is given "
            "torch.linalg.eigh in its place.",
            "curvlinops' fast_lanczos does not re-orthogonalize: it has ghosts, and is "
            "counted all the same.",
        ],
    )


def _jacobians(quick: bool) -> Race:
    count = 100 if quick else 1_000
    model, _ = trained_lenet()
    x, _ = images(count)
    share = min(LOOP_INPUTS, count) / count

    def loop() -> None:
        for sample in x[: min(LOOP_INPUTS, count)]:
            torch.autograd.functional.jacobian(model, sample[None]).norm()

    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def output(sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample[None],))[0]

    jacobians = torch.func.vmap(torch.func.jacrev(output), chunk_size=100)
    return Race(
        f"Jacobian norms of LeNet at {count:,} inputs",
        {
            OURS: lambda: Side(lambda: instruments.input_sensitivity(model, x)),
            "torch.autograd.functional.jacobian in a loop": lambda: Side(loop, share),
            "vmap(jacrev), 100 inputs at a time": lambda: Side(
                lambda: jacobians(x).flatten(1).norm(dim=1)
            ),
        },
        {
            "torch.autograd.functional.jacobian in a loop": ("10x", "30x"),
            "vmap(jacrev), 100 inputs at a time": ("1.2x", "2x"),
        },
    )


def _plane(
    quick: bool, label: str, case: tuple[nn.Module, Any], loss: str, goal: bool
) -> Race:
    model, (x, y) = case
    size = 5 if quick else RESOLUTION

    def landscapes() -> Side:
        tool = peer("loss_landscapes", name="loss-landscapes")
        function = {"mse": nn.MSELoss(), "cross_entropy": nn.CrossEntropyLoss()}[loss]
        metric = peer("loss_landscapes.metrics", name="loss-landscapes").Loss(
            function, x, y
        )

        def plane() -> None:
            with torch.no_grad():
                tool.random_plane(
                    model,
                    metric,
                    steps=size,
                    normalization="filter",
                    deepcopy_model=True,
                )

        return Side(plane)

    return Race(
        f"{size} x {size} loss plane, {label}",
        {
            OURS: lambda: Side(
                lambda: instruments.loss_plane(model, loss, (x, y), resolution=size)
            ),
            "loss-landscapes": landscapes,
        },
        {"loss-landscapes": ("5x", "20x")} if goal else {},
    )


def product_costs(repeats: int) -> Table:
    """Price Hessian-vector products in gradients, beside what arithmetic says."""
    rows = []
    for label, (model, data), loss in (
        ("LeNet, 2,000 images", trained_lenet(), "cross_entropy"),
        ("1-100-100-1, 300 points", trained_dense(), "mse"),
    ):
        block = 4
        for kind, cache, columns, bound in (
            ("kept graph", True, 1, "2"),
            ("new graph", False, 1, "3"),
            (f"new graph, block of {block}", False, block, f"{2 + 1 / block:g}"),
        ):
            operator = instruments.HessianOperator(model, loss, data, cache=cache)
            vectors = torch.randn(operator.shape[0], columns)
            operator @ vectors
            ratios = []
            for _ in range(repeats):
                gradient = _seconds(operator.objective.gradient)  # the same batches
                ratios.append(
                    _seconds(partial(operator.__matmul__, vectors)) / columns / gradient
                )
            rows.append([label, kind, bound, spread_text(Spread.of(ratios))])
    return Table(
        "Hessian-vector products in gradient evaluations",
        ("network", "product", "by the arithmetic", "measured"),
        rows,
        [
            "One gradient evaluation is a forward and a backward pass over all data, "
            "timed in the same turn."
        ],
    )


def _seconds(work: Any, least: float = 0.2) -> float:
    """Time a call: the mean over calls of ``least`` seconds in total."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < least:
        work()
        calls += 1
    return (time.perf_counter() - began) / calls


def _loss_at(
    network: nn.Module, x: Tensor, y: Tensor, parameters: dict[str, Tensor]
) -> Tensor:
    return F.mse_loss(torch.func.functional_call(network, parameters, x), y)


def _curvlinops(tool: Any, model: nn.Module, x: Tensor, y: Tensor) -> Any:
    parameters = [
        parameter for parameter in model.parameters() if parameter.requires_grad
    ]
    loss = nn.CrossEntropyLoss()
    return tool.HessianLinearOperator(
        model, loss, parameters, [(x, y)], check_deterministic=False
    )


def _pyhessian(tool: Any, model: nn.Module, x: Tensor, y: Tensor) -> Any:
    with warnings.catch_warnings():
        # it calls backward(create_graph=True), which warns of the leak
        warnings.simplefilter("ignore")
        model.zero_grad()
        return tool.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)


def _with_eig(work: Any) -> None:
    """Call with a ``torch.eig`` of the shape that PyHessian expects."""

    def eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    torch.eig = eig
    try:
        work()
    finally:
        del torch.eig


def _worst_residual(
    model: nn.Module, data: Any, values: list[float], vectors: list[list[Tensor]]
) -> float:
    operator = instruments.HessianOperator(model, "cross_entropy", data)
    worst = 0.0
    for value, vector in zip(values, vectors, strict=True):
        flat = torch.cat([part.flatten() for part in vector])
        flat /= flat.norm()
        worst = max(worst, float((operator @ flat - value * flat).norm()))
    return worst
