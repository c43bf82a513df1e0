r"""Linear autoencoders from moments: solvers, and what they converge to.

An encoder E (k, d) and a decoder D (d, k) lose
:math:`\mathbb{E}\|x - D E x\|^2 = \mathrm{tr}((I - D E) S (I - D E)^\top)`, where S is the
covariance of centered samples. So a step costs d x d x k products, however many samples
there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablab.baselines.principal import PrincipalComponents


@dataclass
class LinearAutoencoder:
    """An encoder and a decoder in float64, without biases: samples are centered.

    Attributes:
        encoder: (k, d).
        decoder: (d, k).
    """

    encoder: Tensor
    decoder: Tensor

    @classmethod
    def start(
        cls, inputs: int, code: int, rng: np.random.Generator
    ) -> LinearAutoencoder:
        """Draw both from normal distributions, so that variances are about kept."""
        first, second = (
            torch.from_numpy(rng.normal(size=shape) / np.sqrt(shape[1]))
            for shape in ((code, inputs), (inputs, code))
        )
        return cls(first, second)

    @classmethod
    def of(cls, network: Any) -> LinearAutoencoder:
        """Take the matrices of a network with one linear layer each way, no biases.

        Args:
            network: As `nablab.models.dense_autoencoder` builds it.
        """
        (encoder,), (decoder,) = (
            [part.detach().cpu().double() for part in half.parameters()]
            for half in (network.encoder, network.decoder)
        )
        return cls(encoder, decoder)

    def lost(self, covariance: Tensor) -> float:
        """Return the mean squared error, added up over coordinates."""
        codes = self.encoder @ covariance  # E S
        kept = 2 * (codes * self.decoder.T).sum()
        spread = ((self.decoder.T @ self.decoder) * (codes @ self.encoder.T)).sum()
        return float(covariance.trace() - kept + spread)

    def alternate(self, covariance: Tensor) -> None:
        """Set the decoder to the best one, then the encoder to the best for that.

        Each is a least-squares problem with one solution. Between the two the decoder's
        columns are made orthonormal, which another basis of the code can undo; that
        makes it orthogonal iteration (Golub and Van Loan 2013, section 8.2.4).
        """
        codes = self.encoder @ covariance
        best = torch.linalg.solve(codes @ self.encoder.T, codes)  # D transposed
        self.decoder = torch.linalg.qr(best.T)[0]
        self.encoder = self.decoder.T.contiguous()

    def preconditioned_step(self, covariance: Tensor, rate: float) -> None:
        """Take a gradient step in both, each scaled by the curvature that it has alone.

        The Hessian by the encoder is D'D on one side and S on the other, that by the
        decoder is E S E'. Divided by them, the step does not depend on how badly the
        pixels are scaled (Tong, Ma, Chi 2021).

        Args:
            covariance: (d, d).
            rate: From 0 to 1; at 1 each part jumps to where it is best alone.
        """
        codes = self.encoder @ covariance
        decoder = torch.linalg.solve(codes @ self.encoder.T, codes).T
        gram = self.decoder.T @ self.decoder
        encoder = torch.linalg.solve(gram, self.decoder.T)
        self.decoder = torch.lerp(self.decoder, decoder, rate)
        self.encoder = torch.lerp(self.encoder, encoder, rate)


def regularized_optimum(
    components: PrincipalComponents, penalty: float
) -> LinearAutoencoder:
    r"""Return the optimum with an L2 penalty on both layers, in closed form.

    Of :math:`\mathbb{E}\|x - D E x\|^2 + \lambda (\|D\|^2 + \|E\|^2)`: with principal
    axes U and variances :math:`\Lambda`, :math:`D = E^\top = U (I - \lambda
    \Lambda^{-1})_+^{1/2}`, and any rotation of the code. Source: Kunin et al. 2019,
    "Loss landscapes of regularized linear autoencoders", theorem 2.

    Args:
        components: As many as the code is to have.
        penalty: λ, not negative.
    """
    shares = (1 - penalty / components.variances.clamp(min=1e-300)).clamp(min=0)
    decoder = components.axes.T * shares.sqrt()
    return LinearAutoencoder(decoder.T.contiguous(), decoder)


def largest_angle(first: Tensor, second: Tensor) -> float:
    """Return the largest principal angle between two subspaces, in degrees.

    Args:
        first: A basis in its columns, (d, k).
        second: The same of the other.
    """
    from scipy.linalg import subspace_angles

    return float(np.degrees(subspace_angles(first.numpy(), second.numpy())[0]))
