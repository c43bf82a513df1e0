"""Questions about eigenvalues, traces and densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from benchmarks.answers_cases import (
    Data,
    Floats,
    cut,
    regression,
    softmax_regression,
    softmax_trace,
)
from benchmarks.peers.tools import peer
from benchmarks.questions import Ask, Question, Reply, refusal, repeated
from nablab.instruments.curvature.density import spectral_density
from nablab.instruments.curvature.eigenvalues import hessian_eigenvalues
from nablab.instruments.curvature.inertia import inertia
from nablab.instruments.curvature.trace import hessian_trace

PRODUCTS = 60  # of the traces


def questions(seeds: Sequence[int]) -> list[Question]:
    """List all questions of this file."""
    spectra = {
        "ten eigenvalues that halve, and 190 below": np.append(
            0.5 ** np.arange(10), np.linspace(0, 0.5**10, 190)
        ),
        "ten eigenvalues 1 % apart, and 190 below 0.5": np.append(
            1 - 0.01 * np.arange(10), np.linspace(0, 0.5, 190)
        ),
        "200 eigenvalues from 0 to 1, evenly": np.linspace(0, 1, 200),
    }
    return [
        *(largest(label, spectrum, seeds) for label, spectrum in spectra.items()),
        traces(seeds),
        signs(),
        ghosts(seeds),
        shares(seeds[:5]),  # each averages over ten probes, and takes seconds
    ]


def pyhessian(model: nn.Module, loss: Any, **data: Any) -> Any:
    """Make PyHessian's object for a model, on the processor."""
    return peer("pyhessian", name="PyHessian").hessian(model, loss, cuda=False, **data)


def eigenthings(
    model: nn.Module, loss: Any, batches: Sequence[Data], **options: Any
) -> tuple[Any, Any]:
    """Import the package hessian-eigenthings, and make its Hessian of a model."""
    tool = peer("hessian_eigenthings", name="hessian-eigenthings")
    return tool, tool.HessianOperator(
        model, batches, tool.supervised_loss(loss), **options
    )


def curvlinops(model: nn.Module, loss: Any, batches: Sequence[Data]) -> Any:
    """Make the Hessian of a model by curvlinops."""
    tool = peer("curvlinops", name="curvlinops")
    return tool.HessianLinearOperator(model, loss, list(model.parameters()), batches)


def largest(label: str, spectrum: Floats, seeds: Sequence[int]) -> Question:
    """Ask for the five largest eigenvalues."""
    count, (model, data), loss = 5, regression(spectrum), nn.MSELoss()
    truth = np.sort(spectrum)[::-1][:count]

    def judged(values: Any, says: str = "nothing") -> tuple[str, float, str]:
        found = np.sort(np.asarray(values, dtype=np.float64))[::-1]
        return f"{found[0]:.4f}", float(np.abs(found - truth).max() / truth[0]), says

    def power(**options: Any) -> Reply:
        def ask(_: int) -> tuple[str, float, str]:
            return judged(
                pyhessian(model, loss, data=data).eigenvalues(top_n=count, **options)[0]
            )

        return repeated(ask, seeds)

    def iterated(name: str, **options: Any) -> Reply:
        tool, operator = eigenthings(model, loss, [data])

        def ask(seed: int) -> tuple[str, float, str]:
            found = getattr(tool, name)(operator, k=count, seed=seed, **options)
            return judged(found.eigenvalues, _converged(bool(found.converged.all())))

        return repeated(ask, seeds)

    def arpack() -> Reply:
        operator = curvlinops(model, loss, [data]).to_scipy()

        def ask(seed: int) -> tuple[str, float, str]:
            start = (
                np.random.default_rng(seed)
                .standard_normal(len(spectrum))
                .astype(np.float32)
            )
            return judged(
                eigsh(operator, k=count, v0=start, return_eigenvectors=False),
                _converged(True),
            )

        return repeated(ask, seeds)

    def ours(seed: int) -> tuple[str, float, str]:
        found = hessian_eigenvalues(model, "mse", data, count=count, seed=seed)
        return judged(found.values, _converged(found.converged))

    return Question(
        f"The five largest eigenvalues: {label}",
        "Linear regression with 200 parameters and 200 samples in float32, one batch; "
        f"the spectrum is prescribed. {len(seeds)} random starts; the answer shown is "
        "the largest eigenvalue of the first.",
        ", ".join(f"{value:g}" for value in truth),
        "largest distance of the five, of λ₁",
        [
            Ask(
                "nablab",
                f"hessian_eigenvalues(count={count})",
                lambda: repeated(ours, seeds),
            ),
            Ask("PyHessian", f"eigenvalues(top_n={count})", power),
            Ask(
                "PyHessian",
                f"eigenvalues(top_n={count}, tol=1e-4, maxIter=1000)",
                lambda: power(tol=1e-4, maxIter=1000),
            ),
            Ask(
                "hessian-eigenthings",
                f"lanczos(k={count})",
                lambda: iterated("lanczos"),
            ),
            Ask(
                "hessian-eigenthings",
                f"lanczos(k={count}, max_iter=50)",
                lambda: iterated("lanczos", max_iter=50),
            ),
            Ask(
                "hessian-eigenthings",
                f"lanczos(k={count}, max_iter=100)",
                lambda: iterated("lanczos", max_iter=100),
            ),
            Ask(
                "hessian-eigenthings",
                f"deflated_power_iteration(k={count})",
                lambda: iterated("deflated_power_iteration"),
            ),
            Ask("curvlinops", f"scipy's eigsh(H.to_scipy(), k={count})", arpack),
        ],
    )


def _converged(value: bool) -> str:
    return "converged" if value else "not converged"


def _within(distance: float, error: float) -> str:
    return (
        f"the truth is {'within' if distance <= 2 * error else 'beyond'} 2 of its "
        "errors"
    )


def traces(seeds: Sequence[int]) -> Question:
    """Ask for the trace with a last batch of one sample."""
    model, data = softmax_regression()
    batches, loss = cut(data, 64), nn.CrossEntropyLoss()
    truth = softmax_trace(model, data[0])

    def judged(value: Any, error: float | None = None) -> tuple[str, float, str]:
        distance = abs(float(value) - truth)
        if error is None:
            return f"{float(value):.4g}", distance / truth, "no error"
        return (
            f"{float(value):.4g} ± {error:.2g}",
            distance / truth,
            _within(distance, error),
        )

    def hutchinson(seed: int) -> tuple[str, float, str]:
        probes = pyhessian(model, loss, dataloader=batches).trace()
        text, distance, says = judged(np.mean(probes))
        return f"{text} from {len(probes)} probes", distance, says

    def plus(seed: int) -> tuple[str, float, str]:
        tool, operator = eigenthings(model, loss, batches)
        found = tool.trace(operator, num_matvecs=PRODUCTS, seed=seed)
        return judged(found.estimate, found.stderr)

    def crossed(name: str) -> Reply:
        operator = curvlinops(model, loss, batches)
        module = {"xtrace": "epperly2024xtrace", "hutchpp_trace": "meyer2020hutch"}[
            name
        ]
        estimate = getattr(peer(f"curvlinops.trace.{module}", name="curvlinops"), name)
        return repeated(lambda _: judged(estimate(operator, PRODUCTS)), seeds)

    def ours(seed: int) -> tuple[str, float, str]:
        found = hessian_trace(
            model, "cross_entropy", batches, products=PRODUCTS, seed=seed
        )
        return judged(found.value, found.standard_error)

    return Question(
        "The trace, with a ragged last batch",
        "Softmax regression with 105 parameters in float32 on 129 samples in batches "
        f"of 64, 64 and 1. {len(seeds)} random starts.",
        f"{truth:.4g}, by the closed form: the mean over samples of (1 + |x|²)(1 - "
        "|p|²)",
        "distance, of the trace",
        [
            Ask(
                "nablab",
                f"hessian_trace(products={PRODUCTS})",
                lambda: repeated(ours, seeds),
            ),
            Ask(
                "PyHessian",
                "mean of trace(), dataloader",
                lambda: repeated(hutchinson, seeds),
            ),
            Ask(
                "hessian-eigenthings",
                f"trace(num_matvecs={PRODUCTS})",
                lambda: repeated(plus, seeds),
            ),
            Ask("curvlinops", f"xtrace(H, {PRODUCTS})", lambda: crossed("xtrace")),
            Ask(
                "curvlinops",
                f"hutchpp_trace(H, {PRODUCTS})",
                lambda: crossed("hutchpp_trace"),
            ),
        ],
        [
            "hessian-eigenthings gives each batch the same weight, so one sample "
            "weighs as much as 64. PyHessian and curvlinops weigh batches by their "
            "samples.",
            "PyHessian stops when the running mean changes by less than 0.1 %, at the "
            "latest after 100 probes.",
        ],
    )


def signs() -> Question:
    """Ask how many eigenvalues are positive."""
    count, rank = 200, 60
    spectrum = np.append(np.geomspace(1e-2, 1, rank), np.zeros(count - rank))
    model, data = regression(spectrum)
    loss = nn.MSELoss()

    def counted(matrix: Tensor) -> Reply:
        values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        return _signs(int((values > 0).sum()), rank, f"smallest {float(values[0]):.1g}")

    def dense() -> Reply:
        names = dict(model.named_parameters())
        found = torch.func.hessian(
            lambda given: loss(
                torch.func.functional_call(model, given, (data[0],)), data[1]
            )
        )(names)
        return counted(found["weight"]["weight"].reshape(count, count).detach())

    def quadrature() -> Reply:
        tool, operator = eigenthings(model, loss, [data])
        found = tool.spectral_density(operator, seed=0)
        above = float((found.raw_weights * (found.raw_eigenvalues > 0)).sum(1).mean())
        return _signs(round(count * above), rank, "nothing")

    def ours(dtype: torch.dtype) -> Reply:
        found = inertia(model, "mse", data, dtype=dtype)
        distance = abs(found.triple[0] - rank)
        return Reply(
            str(found.triple),
            (float(distance),),
            f"noise floor {found.noise_floor:.1g}",
        )

    def refused() -> Reply:
        return refusal(lambda: spectral_density(model, "mse", data).share_above(0.0))

    return Question(
        "How many eigenvalues are positive: a positive semidefinite Hessian of rank 60",
        "Linear regression with 200 parameters in float32 on 200 samples; 60 "
        "eigenvalues from 0.01 to 1, the others zero.",
        "60 positive, 140 zero, none negative",
        "positive ones too many",
        [
            Ask("nablab", "inertia()", lambda: ours(torch.float64)),
            Ask("nablab", "inertia(dtype=torch.float32)", lambda: ours(torch.float32)),
            Ask("nablab", "spectral_density().share_above(0)", refused),
            Ask("PyTorch", "(eigvalsh(torch.func.hessian(f)(w)) > 0).sum()", dense),
            Ask(
                "curvlinops",
                "(eigvalsh(H @ torch.eye(200)) > 0).sum()",
                lambda: counted(curvlinops(model, loss, [data]) @ torch.eye(count)),
            ),
            Ask(
                "hessian-eigenthings",
                "spectral_density(): 200 · weight above 0",
                quadrature,
            ),
            Ask(
                "PyHessian",
                "density()",
                lambda: refusal(lambda: pyhessian(model, loss, data=data).density()),
            ),
        ],
        [
            "The tools that give a matrix or nodes leave the count to their user; it "
            "is the obvious one."
        ],
    )


def _signs(positive: int, truth: int, says: str) -> Reply:
    return Reply(f"{positive} positive", (float(abs(positive - truth)),), says)


def ghosts(seeds: Sequence[int]) -> Question:
    """Ask how often a Lanczos process finds one eigenvalue."""
    steps, top = 150, 10.0
    model, data = regression(np.append(np.linspace(0, 1, 399), top))
    loss = nn.MSELoss()

    def judged(values: Any, says: str = "nothing") -> tuple[str, float, str]:
        copies = int((np.abs(np.asarray(values) - top) < 0.01 * top).sum())
        return str(copies), float(copies - 1), says

    def fast(seed: int) -> tuple[str, float, str]:
        spectrum = peer("curvlinops.papyan2020traces.spectrum", name="curvlinops")
        return judged(spectrum.fast_lanczos(curvlinops(model, loss, [data]), steps)[0])

    def quadrature(seed: int) -> tuple[str, float, str]:
        tool, operator = eigenthings(model, loss, [data])
        found = tool.spectral_density(
            operator, num_runs=1, lanczos_steps=steps, seed=seed
        )
        return judged(found.raw_eigenvalues[0])

    def pairs(seed: int, **options: Any) -> tuple[str, float, str]:
        tool, operator = eigenthings(model, loss, [data])
        found = tool.lanczos(operator, k=10, max_iter=steps, seed=seed, **options)
        near = (found.eigenvalues - top).abs() < 0.01 * top
        return judged(found.eigenvalues, _converged(bool(found.converged[near].all())))

    def ours(seed: int) -> tuple[str, float, str]:
        found = spectral_density(model, "mse", data, probes=2, steps=steps, seed=seed)
        return judged(found.nodes[0], "nothing")

    def ours_pairs(seed: int) -> tuple[str, float, str]:
        found = hessian_eigenvalues(model, "mse", data, count=10, seed=seed)
        return judged(found.values, _converged(found.converged))

    return Question(
        f"Ghosts: copies of one isolated eigenvalue after {steps} Lanczos steps",
        "Linear regression with 400 parameters in float32: one eigenvalue of 10, and "
        f"399 from 0 to 1. {len(seeds)} random starts.",
        "1",
        "copies too many",
        [
            Ask(
                "nablab",
                f"spectral_density(steps={steps})",
                lambda: repeated(ours, seeds),
            ),
            Ask(
                "nablab",
                "hessian_eigenvalues(count=10)",
                lambda: repeated(ours_pairs, seeds),
            ),
            Ask(
                "curvlinops", f"fast_lanczos(H, {steps})", lambda: repeated(fast, seeds)
            ),
            Ask(
                "hessian-eigenthings",
                f"spectral_density(lanczos_steps={steps})",
                lambda: repeated(quadrature, seeds),
            ),
            Ask(
                "hessian-eigenthings",
                f"lanczos(k=10, max_iter={steps})",
                lambda: repeated(pairs, seeds),
            ),
            Ask(
                "hessian-eigenthings",
                f"lanczos(k=10, max_iter={steps}, reorthogonalize=True)",
                lambda: repeated(lambda seed: pairs(seed, reorthogonalize=True), seeds),
            ),
        ],
        [
            "curvlinops says that fast_lanczos does not re-orthogonalize. Ghosts share "
            "the weight of the eigenvalue between them, so its density is right all "
            "the same (the next table).",
            "hessian-eigenthings re-orthogonalizes by default up to 50 steps only, and "
            "says so.",
        ],
    )


def shares(seeds: Sequence[int]) -> Question:
    """Ask for the share of eigenvalues above a threshold in a gap."""
    threshold = 0.6
    spectrum = np.concatenate(
        [np.linspace(0, 0.2, 120), np.linspace(0.9, 1.1, 200), np.linspace(2, 3, 80)]
    )
    model, data = regression(spectrum)
    loss, truth = nn.MSELoss(), float((spectrum > threshold).mean())

    def judged(value: float, says: str = "no error") -> tuple[str, float, str]:
        return f"{value:.4f}", abs(value - truth), says

    def smoothed(grid: Tensor, density: Tensor) -> tuple[str, float, str]:
        above = grid > threshold
        return judged(float(torch.trapezoid(density[above], grid[above])))

    def papyan(seed: int) -> tuple[str, float, str]:
        spectrum = peer("curvlinops.papyan2020traces.spectrum", name="curvlinops")
        operator = curvlinops(model, loss, [data])
        return smoothed(
            *spectrum.lanczos_approximate_spectrum(operator, 80, num_repeats=10)
        )

    def quadrature(seed: int) -> tuple[str, float, str]:
        tool, operator = eigenthings(model, loss, [data])
        # run i of a call starts from seed + i
        found = tool.spectral_density(operator, seed=10 * seed)
        return smoothed(found.grid, found.density)

    def ours(seed: int) -> tuple[str, float, str]:
        found = spectral_density(model, "mse", data, seed=seed).share_above(
            threshold, within=0.02
        )
        text, distance, _ = judged(found.value)
        error = found.standard_error
        return f"{text} ± {error:.1g}", distance, _within(distance, error)

    return Question(
        "The share of eigenvalues above a threshold in a gap, from the spectral "
        "density",
        "Linear regression with 400 parameters in float32; 120 eigenvalues from 0 to "
        "0.2, 200 from 0.9 to 1.1, 80 from 2 to 3; 10 probes of 80 steps; "
        f"{len(seeds)} random starts.",
        f"{truth:g} above {threshold:g}",
        "distance",
        [
            Ask(
                "nablab",
                f"spectral_density().share_above({threshold}, within=0.02)",
                lambda: repeated(ours, seeds),
            ),
            Ask(
                "hessian-eigenthings",
                "spectral_density(), integrated",
                lambda: repeated(quadrature, seeds),
            ),
            Ask(
                "curvlinops",
                "lanczos_approximate_spectrum(H, 80, num_repeats=10), integrated",
                lambda: repeated(papyan, seeds),
            ),
            Ask(
                "PyHessian",
                "density()",
                lambda: refusal(lambda: pyhessian(model, loss, data=data).density()),
            ),
        ],
        [
            "With ten random vectors the error is that of the sample for every tool. "
            "By default nablab answers only where its bounds are 0.01 apart at most; "
            "here they are a little wider.",
            "PyHessian 0.1 calls torch.eig, which PyTorch has removed.",
        ],
    )
