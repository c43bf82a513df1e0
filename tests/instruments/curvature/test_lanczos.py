"""Lanczos: orthogonality, no ghosts, breakdowns, restarts, and the unseen."""

import numpy as np
import pytest
import torch

from nablab.errors import UsageError
from nablab.instruments.curvature.lanczos import Krylov, unseen_beyond
from nablab.instruments.curvature.matrices import (
    check_matrix,
    random_signs,
    random_vector,
    require_rows,
)
from tests.instruments.spectra import matrix


def grown(dense, steps, *, capacity=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    krylov = Krylov(random_vector(dense, generator), capacity or steps)
    for _ in range(steps):
        if not krylov.absorb(dense @ krylov.newest) and krylov.size < len(dense):
            krylov.inject(random_vector(dense, generator))
    return krylov


@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.float64, 1e-13), (torch.float32, 1e-5)]
)
def test_the_basis_stays_orthonormal_far_beyond_convergence(dtype, digits):
    spectrum = np.concatenate([[1000.0], np.linspace(0, 1, 119)])
    krylov = grown(matrix(spectrum, dtype=dtype), 110)
    gram = (krylov.vectors[:110] @ krylov.vectors[:110].T).double()
    assert float((gram - torch.eye(110)).abs().max()) < digits


def test_memory_that_is_taken_in_two_parts_changes_nothing():
    dense = matrix(np.linspace(0, 1, 60) ** 2, dtype=torch.float32)
    start = random_vector(dense, torch.Generator().manual_seed(0))
    whole, parted = Krylov(start, 30), Krylov(start, 30, 8)
    assert (len(whole.vectors), len(parted.vectors)) == (31, 9)
    for step in range(30):
        for krylov in (whole, parted):
            krylov.absorb(dense @ krylov.newest)
        assert len(parted.vectors) == (9 if step < 8 else 31)
    assert torch.equal(whole.vectors, parted.vectors)
    assert np.array_equal(whole.projected, parted.projected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_converged_eigenvalue_has_no_ghosts(dtype):
    spectrum = np.concatenate([[1000.0], np.linspace(0, 1, 119)])
    values = grown(matrix(spectrum, dtype=dtype), 110).ritz()[0]
    assert (values > 2).sum() == 1
    assert values[-1] == pytest.approx(1000, rel=1e-6)


def test_without_the_second_pass_of_all_vectors_ghosts_would_come():
    """The three-term recurrence alone, on the same matrix: the test above can fail."""
    dense = matrix(np.concatenate([[1000.0], np.linspace(0, 1, 119)]))
    newest = torch.ones(120, dtype=torch.float64) / 120**0.5
    before = torch.zeros(120)
    coupling = 0.0
    diagonal, off = [], []
    for _ in range(110):
        rest = dense @ newest - coupling * before
        diagonal.append(float(rest @ newest))
        rest -= diagonal[-1] * newest
        coupling = float(rest.norm())
        off.append(coupling)
        before, newest = newest, rest / coupling
    tridiagonal = np.diag(diagonal) + np.diag(off[:-1], 1) + np.diag(off[:-1], -1)
    assert (np.linalg.eigvalsh(tridiagonal) > 2).sum() > 1


def test_a_full_basis_gives_all_eigenvalues_exactly():
    dense = matrix(np.linspace(-3, 5, 40))
    values, rotation, residuals = grown(dense, 40).ritz()
    assert np.allclose(values, np.linspace(-3, 5, 40), atol=1e-12)
    assert np.allclose(rotation.T @ rotation, np.eye(40), atol=1e-12)
    assert (residuals == 0).all()


def test_residuals_are_those_of_the_vectors():
    dense = matrix(np.linspace(-3, 5, 60))
    krylov = grown(dense, 15)
    values, rotation, residuals = krylov.ritz()
    (_, vectors), *rest = krylov.combinations(rotation)
    assert not rest
    measured = (vectors @ dense - torch.from_numpy(values)[:, None] * vectors).norm(
        dim=1
    )
    assert np.allclose(measured.numpy(), residuals, rtol=1e-8)
    assert residuals.max() > 0.1


def test_an_invariant_subspace_is_noticed_and_left():
    dense = matrix([2.0] * 30 + [1.0] * 20)
    krylov = Krylov(random_vector(dense, torch.Generator().manual_seed(0)), 10)
    assert krylov.absorb(dense @ krylov.newest) > 0
    # There are two distinct eigenvalues, and so two vectors.
    assert krylov.absorb(dense @ krylov.newest) == 0
    assert np.allclose(krylov.ritz()[0], [1, 2])
    krylov.inject(torch.ones(50, dtype=torch.float64))
    for _ in range(2):
        krylov.absorb(dense @ krylov.newest)
    assert np.allclose(krylov.ritz()[0], [1, 1, 2, 2])


def test_a_restart_keeps_the_ritz_pairs_and_goes_on_as_lanczos():
    dense = matrix(np.linspace(-1, 1, 80))
    krylov = grown(dense, 20)
    values, rotation, residuals = krylov.ritz()
    krylov.restart(values[-6:], rotation[:, -6:])
    kept = krylov.vectors[:6] @ dense @ krylov.vectors[:6].T
    assert np.allclose(kept.numpy(), np.diag(values[-6:]), atol=1e-12)
    krylov.absorb(dense @ krylov.newest)
    projected = krylov.vectors[:7] @ dense @ krylov.vectors[:7].T
    assert np.allclose(krylov.projected[:7, :7], projected.numpy(), atol=1e-12)
    assert np.allclose(np.abs(krylov.projected[6, :6]), residuals[-6:], atol=1e-12)


def test_locked_vectors_keep_their_residuals():
    dense = matrix(np.linspace(-1, 1, 80))
    krylov = grown(dense, 20)
    values, rotation, residuals = krylov.ritz()
    fresh = random_vector(dense, torch.Generator().manual_seed(1))
    krylov.lock(values[-3:], rotation[:, -3:], residuals[-3:], fresh)
    assert krylov.size == 3
    assert float((krylov.vectors[:3] @ krylov.newest).abs().max()) < 1e-14
    krylov.absorb(dense @ krylov.newest)
    values, rotation, stated = krylov.ritz()
    ((_, vectors),) = krylov.combinations(rotation)
    measured = (
        (vectors @ dense - torch.from_numpy(values)[:, None] * vectors)
        .norm(dim=1)
        .numpy()
    )
    assert measured[-1] > 0.005
    assert (stated > 0.7 * measured).all()
    assert (stated < 1.5 * measured).all()


def test_a_product_that_is_not_finite_is_refused():
    krylov = Krylov(torch.ones(3), 2)
    with pytest.raises(
        UsageError,
        match=r"2 entries that are NaN or infinite.*no finite second derivative",
    ):
        krylov.absorb(torch.tensor([1.0, float("nan"), float("inf")]))


def test_the_bound_on_unseen_eigenvalues_holds():
    """An eigenvalue beyond the bound is as rare as promised, and the bound is tight."""
    spectrum = np.concatenate([[1.3], np.linspace(0, 1, 199)])
    dense, chance = matrix(spectrum), 0.2
    beyond, levels = 0, []
    for seed in range(300):
        values = grown(dense, 8, seed=seed).ritz()[0]
        levels.append(unseen_beyond(values[-1], 0.0, 8, 200, chance))
        beyond += levels[-1] < 1.3
    assert beyond <= 300 * chance
    assert np.median(levels) < 2


def test_the_bound_shrinks_with_the_steps_to_the_highest_ritz_value():
    levels = [
        unseen_beyond(1.0, 0.0, steps, 10**6, 1e-3) for steps in (1, 5, 20, 80, 320)
    ]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 1e9
    assert 1 < levels[-1] < 1.001
    assert unseen_beyond(2.0, 2.0, 3, 100, 1e-3) == 2.0


def test_random_signs_are_signs_and_differ():
    dense = matrix(np.ones(50))
    signs = random_signs(dense, 40, torch.Generator().manual_seed(0))
    assert signs.shape == (50, 40)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1
    assert len({tuple(column.tolist()) for column in signs.T}) == 40


def test_what_is_not_a_symmetric_real_matrix_is_refused():
    refusal = "is not a symmetric real matrix"
    with pytest.raises(UsageError, match=rf"shape \(2, 3\).*{refusal}"):
        check_matrix(torch.ones(2, 3))
    with pytest.raises(UsageError, match=rf"torch\.int64 {refusal}"):
        check_matrix(torch.ones(2, 2, dtype=torch.int64))


def test_too_many_vectors_are_refused_with_their_size():
    dense = matrix(np.ones(10))
    with pytest.raises(
        UsageError,
        match=r"vectors of 10 entries need .* GB, more than half .* Take fewer",
    ):
        require_rows(dense, 10**15, "Take fewer.")
