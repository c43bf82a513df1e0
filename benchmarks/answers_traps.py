"""Questions with a trap.

The traps are a wrong derivative, a random network, and a model that is changed by being
measured.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from benchmarks.answers_cases import (
    Data,
    differences,
    dropout_network,
    hand_written_network,
    layer_norm_network,
    tanh_network,
)
from benchmarks.answers_spectrum import curvlinops, eigenthings, pyhessian
from benchmarks.peers.tools import peer
from benchmarks.questions import Ask, Question, Reply, refusal
from nablab.instruments.curvature.eigenvalues import hessian_eigenvalues
from nablab.instruments.curvature.hessian_matrix import hessian_matrix
from nablab.instruments.curvature.operators import HessianOperator

MEASUREMENTS = 50


def questions(seeds: Sequence[int]) -> list[Question]:
    """List all questions of this file; none is random."""
    return [
        exact(
            "The Hessian through layer norm",
            "Linear(3, 4), LayerNorm(4), Linear(4, 1) with random weights in float64, "
            "8 samples, mean squared error.",
            layer_norm_network(),
            [
                "In PyTorch 2.13 the derivative of layer norm's backward pass is wrong "
                "where that pass runs under vmap, as in torch.func.jacrev: in the rows "
                "of the layer norm's weight. torch.func.hessian is jacfwd(jacrev), and "
                "curvlinops takes jvp(jacrev). Over a gradient by torch.func.grad, "
                "without vmap, forward mode is right too."
            ],
        ),
        exact(
            "The Hessian through a function that may be differentiated once only",
            "Linear(3, 4), x³ by a torch.autograd.Function with @once_differentiable, "
            "Linear(4, 1), the rest as for layer norm.",
            hand_written_network(),
            [
                "torch.autograd.grad leaves out what it may not differentiate twice, "
                "and raises no error."
            ],
        ),
        random_network(),
        left_behind(),
    ]


def exact(
    title: str, setting: str, case: tuple[nn.Module, Data], notes: Sequence[str]
) -> Question:
    """Ask for the whole Hessian, from each tool's products with the unit vectors."""
    model, data = case
    loss, unit = (
        nn.MSELoss(),
        torch.eye(sum(p.numel() for p in model.parameters()), dtype=torch.float64),
    )
    truth = differences(model, loss, data)

    def judged(
        build: Callable[[], Tensor], says: Callable[[], str] = lambda: "nothing"
    ) -> Reply:
        found: list[Tensor] = []
        reply = refusal(lambda: found.append(build().detach()))
        if not found:
            return reply
        matrix = found[0]
        distance = float((matrix - truth).norm() / truth.norm())
        return Reply(f"norm {float(matrix.norm()):.4f}", (distance,), says())

    def products() -> Tensor:
        tool = pyhessian(model, loss, data=data)
        multiply = peer("pyhessian.utils", name="PyHessian").hessian_vector_product
        shapes = [parameter.shape for parameter in model.parameters()]
        rows = []
        for row in unit:
            parts = row.split([shape.numel() for shape in shapes])
            vector = [
                part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)
            ]
            rows.append(
                torch.cat(
                    [
                        part.flatten()
                        for part in multiply(tool.gradsH, tool.params, vector)
                    ]
                )
            )
        model.zero_grad()  # the graph that it left there
        return torch.stack(rows)

    def operator(**options: Any) -> Tensor:
        matrix = eigenthings(model, loss, [data], **options)[1]
        return torch.stack([matrix.matvec(row) for row in unit])

    def reversed_twice() -> Tensor:
        function, point = _flat(model, data)
        return torch.func.jacrev(torch.func.grad(function))(point)

    said: dict[str, str] = {}

    def ours() -> Tensor:
        matrix = HessianOperator(model, "mse", data)
        said["operator"] = f"method: {matrix.method}"
        return matrix @ unit

    def ours_whole() -> Tensor:
        found = hessian_matrix(model, "mse", data)
        said["matrix"] = f"method: {found.method}, asymmetry {found.asymmetry:.1g}"
        return torch.from_numpy(found.matrix)

    return Question(
        title,
        setting,
        "central differences of the gradient in float64, norm "
        f"{float(truth.norm()):.4f}",
        "distance, of the norm",
        [
            Ask(
                "nablab",
                "HessianOperator @ unit vectors",
                lambda: judged(ours, lambda: said["operator"]),
            ),
            Ask(
                "nablab",
                "hessian_matrix",
                lambda: judged(ours_whole, lambda: said["matrix"]),
            ),
            Ask(
                "PyTorch",
                "torch.func.hessian",
                lambda: judged(lambda: functional_hessian(model, data)),
            ),
            Ask(
                "PyTorch",
                "torch.func.jacrev(torch.func.grad)",
                lambda: judged(reversed_twice),
            ),
            Ask(
                "PyTorch",
                "torch.autograd.functional.hessian",
                lambda: judged(
                    lambda: torch.autograd.functional.hessian(*_flat(model, data))
                ),
            ),
            Ask(
                "PyHessian",
                "hessian_vector_product on unit vectors",
                lambda: judged(products),
            ),
            Ask(
                "hessian-eigenthings",
                "HessianOperator.matvec on unit vectors",
                lambda: judged(operator),
            ),
            Ask(
                "hessian-eigenthings",
                'the same with method="finite_difference"',
                lambda: judged(lambda: operator(method="finite_difference")),
            ),
            Ask(
                "curvlinops",
                "HessianLinearOperator @ unit vectors",
                lambda: judged(lambda: curvlinops(model, loss, [data]) @ unit),
            ),
        ],
        notes,
    )


def functional_hessian(model: nn.Module, data: Data) -> Tensor:
    """Compute the Hessian (P, P) by `torch.func.hessian`."""
    loss, point = _flat(model, data)
    found: Tensor = torch.func.hessian(loss)(point)
    return found


def _flat(model: nn.Module, data: Data) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the mean squared error as a function of one vector, and the vector."""
    parameters = dict(model.named_parameters())

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([value.numel() for value in parameters.values()])
        given = {
            name: part.reshape(value.shape)
            for part, (name, value) in zip(parts, parameters.items(), strict=True)
        }
        return F.mse_loss(torch.func.functional_call(model, given, (data[0],)), data[1])

    return loss, nn.utils.parameters_to_vector(parameters.values()).detach()


def random_network() -> Question:
    """Ask twice about a network with dropout in training mode."""
    loss = nn.MSELoss()

    def twice(ask: Callable[[nn.Module, Data], float], says: str = "nothing") -> Reply:
        model, data = dropout_network()
        found: list[float] = []
        torch.manual_seed(1)
        reply = refusal(lambda: found.extend(ask(model, data) for _ in range(2)))
        if len(found) < 2:
            return reply
        if not model.training:
            says = "nothing; it leaves the model in eval mode"
        distance = abs(found[1] - found[0]) / max(abs(value) for value in found)
        return Reply(f"{found[0]:.4g}, then {found[1]:.4g}", (distance,), says)

    def power(model: nn.Module, data: Data) -> float:
        return pyhessian(model, loss, data=data).eigenvalues(tol=1e-8, maxIter=1000)[0][
            0
        ]

    def iterated(model: nn.Module, data: Data) -> float:
        tool, operator = eigenthings(model, loss, [data])
        return float(tool.lanczos(operator, k=1, max_iter=50, seed=0).eigenvalues[0])

    def arpack(model: nn.Module, data: Data) -> float:
        return float(
            eigsh(
                curvlinops(model, loss, [data]).to_scipy(),
                k=1,
                return_eigenvectors=False,
            )[0]
        )

    def functional(model: nn.Module, data: Data) -> float:
        return float(torch.linalg.eigvalsh(functional_hessian(model, data))[-1])

    def twofold(model: nn.Module, data: Data) -> float:
        return float(
            torch.linalg.eigvalsh(
                torch.autograd.functional.hessian(*_flat(model, data))
            )[-1]
        )

    def point(model: nn.Module, data: Data) -> float:
        tool = peer("loss_landscapes", name="loss-landscapes")
        metric = peer("loss_landscapes.metrics", name="loss-landscapes").Loss(
            loss, *data
        )
        return float(tool.point(model, metric))

    def ours(model: nn.Module, data: Data) -> float:
        return float(hessian_eigenvalues(model, "mse", data).values[0])

    return Question(
        "Dropout left in training mode: the largest eigenvalue, asked twice",
        "Linear(10, 20), tanh, dropout of one half, Linear(20, 1) in training mode, "
        "100 samples.",
        "there is none: every forward pass is another function. To refuse is right, or "
        "to say that another network is measured",
        "difference, of the larger",
        [
            Ask("nablab", "hessian_eigenvalues()", lambda: twice(ours)),
            Ask("PyTorch", "torch.func.hessian, eigvalsh", lambda: twice(functional)),
            Ask(
                "PyTorch",
                "torch.autograd.functional.hessian, eigvalsh",
                lambda: twice(twofold),
            ),
            Ask(
                "PyHessian", "eigenvalues(tol=1e-8, maxIter=1000)", lambda: twice(power)
            ),
            Ask(
                "hessian-eigenthings",
                "lanczos(k=1, max_iter=50, seed=0)",
                lambda: twice(iterated),
            ),
            Ask("curvlinops", "HessianLinearOperator(...)", lambda: twice(arpack)),
            Ask("loss-landscapes", "point() (the loss)", lambda: twice(point)),
        ],
    )


def left_behind() -> Question:
    """Ask what many measurements leave in memory, and in the model."""
    loss = nn.MSELoss()

    def changed(measure: Callable[[nn.Module, Data], object]) -> Reply:
        model, data = tanh_network()
        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        measure(model, data)
        changes = "; ".join(_changes(model, before)) or "nothing changed"
        tensors, held = _growth(lambda: measure(model, data))
        return Reply(changes, (tensors,), f"{held / 1e3:.0f} kB")

    def pairs(model: nn.Module, data: Data) -> object:
        return pyhessian(model, loss, data=data).eigenvalues(maxIter=5)

    def built(model: nn.Module, data: Data) -> object:
        return pyhessian(model, loss, data=data)

    def iterated(model: nn.Module, data: Data) -> object:
        tool, operator = eigenthings(model, loss, [data])
        return tool.lanczos(operator, k=1, max_iter=5)

    def product(model: nn.Module, data: Data) -> object:
        operator = curvlinops(model, loss, [data])
        return operator @ torch.ones(operator.shape[1])

    def line(**options: Any) -> Callable[[nn.Module, Data], object]:
        def measure(model: nn.Module, data: Data) -> object:
            tool = peer("loss_landscapes", name="loss-landscapes")
            metric = peer("loss_landscapes.metrics", name="loss-landscapes").Loss(
                loss, *data
            )
            return tool.random_line(model, metric, steps=5, **options)

        return measure

    def ours(model: nn.Module, data: Data) -> object:
        return hessian_eigenvalues(model, "mse", data, max_products=10)

    return Question(
        "What a measurement leaves behind",
        "A tanh network with 1,201 parameters in training mode, every .grad set to "
        f"ones; {MEASUREMENTS} measurements. Tensors are counted by Python's garbage "
        "collector; what C++ alone holds is not seen.",
        "nothing changed, 0 tensors, 0 kB",
        "tensors left by each",
        [
            Ask("nablab", "hessian_eigenvalues()", lambda: changed(ours)),
            Ask("PyHessian", "hessian(...).eigenvalues()", lambda: changed(pairs)),
            Ask("PyHessian", "hessian(...) alone", lambda: changed(built)),
            Ask("hessian-eigenthings", "lanczos(k=1)", lambda: changed(iterated)),
            Ask(
                "curvlinops", "HessianLinearOperator @ vector", lambda: changed(product)
            ),
            Ask("loss-landscapes", "random_line()", lambda: changed(line())),
            Ask(
                "loss-landscapes",
                "random_line(deepcopy_model=True)",
                lambda: changed(line(deepcopy_model=True)),
            ),
        ],
        [
            "PyHessian calls backward(create_graph=True), of which PyTorch warns. Its "
            "methods clear .grad and with it the graph; an object that is only built "
            "leaves both."
        ],
        "their memory",
    )


def _changes(model: nn.Module, before: Tensor) -> list[str]:
    parameters = list(model.parameters())
    slopes = [parameter.grad for parameter in parameters]
    found = []
    if all(slope is None for slope in slopes):
        found.append(".grad erased")
    elif any(slope is None or bool((slope != 1).any()) for slope in slopes):
        found.append(".grad changed")
    if any(slope is not None and slope.requires_grad for slope in slopes):
        found.append(".grad holds a graph")
    if not model.training:
        found.append("eval mode")
    if not all(parameter.requires_grad for parameter in parameters):
        found.append("parameters frozen")
    moved = float(
        (nn.utils.parameters_to_vector(parameters).detach() - before).norm()
        / before.norm()
    )
    return [*found, f"weights moved by {moved:.0%} of their norm"] if moved else found


def _growth(measure: Callable[[], object]) -> tuple[float, float]:
    """Count the tensors, and the bytes of their memory, that each measurement adds."""
    measure()
    before = _held()
    for _ in range(MEASUREMENTS):
        measure()
    tensors, held = (
        (now - then) / MEASUREMENTS for now, then in zip(_held(), before, strict=True)
    )
    return tensors, held


def _held() -> tuple[int, int]:
    """Count the tensors Python knows of, and the bytes of their storages.

    Each storage is counted once.
    """
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = dict(filter(None, map(_storage, tensors)))
    return len(tensors), sum(storages.values())


def _storage(tensor: Tensor) -> tuple[int, int] | None:
    """Return the address and the bytes of a tensor's storage.

    The result is None for sparse, batched and fake tensors, which have none.
    """
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (NotImplementedError, RuntimeError):
        return None
