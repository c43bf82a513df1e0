"""MINRES for many symmetric systems at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def minres(
    product: Callable[[Tensor], Tensor], right: Tensor, tolerance: Tensor, most: int
) -> Tensor:
    r"""Minimize :math:`\|Ax - b\|` over Krylov spaces for k symmetric systems.

    Paige and Saunders, "Solution of sparse indefinite systems of linear equations"
    (SIAM Journal on Numerical Analysis 1975). A system is left as it is once its
    residual is below ``tolerance`` times its right side, or once :math:`\|A r\| \le
    10^{-10} \|A\| \|r\|`: the least-squares solution of a singular system.

    Args:
        product: The products (k, P) of each matrix with its row.
        right: The right sides b, (k, P).
        tolerance: (k,).
        most: Products at most.
    """
    x = torch.zeros_like(right)
    beta = start = right.norm(dim=1)
    v_old, v = torch.zeros_like(right), right / start.clamp_min(1e-300)[:, None]
    w, w_old = torch.zeros_like(right), torch.zeros_like(right)
    residual = start.clone()
    cosine, sine = -torch.ones_like(start), torch.zeros_like(start)
    delta_bar = torch.zeros_like(start)
    epsilon = torch.zeros_like(start)
    scale = torch.zeros_like(start)
    beta = torch.zeros_like(start)
    running = start > 0
    for _ in range(most):
        p = product(v)
        alpha = (v * p).sum(1)
        p = p - alpha[:, None] * v - beta[:, None] * v_old
        beta_new = p.norm(dim=1)
        scale = torch.maximum(
            scale, (alpha.square() + beta.square() + beta_new.square()).sqrt()
        )
        # Rotate the new column of the tridiagonal matrix into the upper triangle.
        delta = cosine * delta_bar + sine * alpha
        gamma_bar = sine * delta_bar - cosine * alpha
        epsilon_new, delta_bar = sine * beta_new, -cosine * beta_new
        gamma = torch.hypot(gamma_bar, beta_new).clamp_min(1e-300)
        # ||A r|| / ||r||, before the new column
        flat = torch.hypot(gamma_bar, delta_bar) <= 1e-10 * scale
        running &= ~flat
        cosine, sine = gamma_bar / gamma, beta_new / gamma
        w_new = (v - epsilon[:, None] * w_old - delta[:, None] * w) / gamma[:, None]
        x = torch.where(running[:, None], x + (cosine * residual)[:, None] * w_new, x)
        residual = sine * residual
        w_old, w, epsilon = w, w_new, epsilon_new
        running &= (residual.abs() > tolerance * start) & (beta_new > 1e-14 * scale)
        if not running.any():
            break
        v_old, v, beta = v, p / beta_new.clamp_min(1e-300)[:, None], beta_new
    return x
