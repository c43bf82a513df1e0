"""Instruments: measure any PyTorch module, with error bars and certificates.

They need only PyTorch, NumPy and SciPy (matplotlib for ``plot()``) and are usable
alone. A name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.instruments.base.losses import Closure as Closure
    from nablab.instruments.base.losses import Penalized as Penalized
    from nablab.instruments.base.measurement import Measurement as Measurement
    from nablab.instruments.base.objective import Objective as Objective
    from nablab.instruments.base.replica_objective import (
        ReplicaObjective as ReplicaObjective,
    )
    from nablab.instruments.base.replicas import Replicas as Replicas
    from nablab.instruments.costs import Cost as Cost
    from nablab.instruments.costs import cost as cost
    from nablab.instruments.counters import count_labels as count_labels
    from nablab.instruments.counters import count_next_tokens as count_next_tokens
    from nablab.instruments.curvature.critical_points import (
        CriticalPoint as CriticalPoint,
    )
    from nablab.instruments.curvature.critical_points import (
        find_critical_point as find_critical_point,
    )
    from nablab.instruments.curvature.density import SpectralDensity as SpectralDensity
    from nablab.instruments.curvature.density import density_of as density_of
    from nablab.instruments.curvature.density import (
        spectral_density as spectral_density,
    )
    from nablab.instruments.curvature.diagonal import Diagonal as Diagonal
    from nablab.instruments.curvature.diagonal import diagonal_of as diagonal_of
    from nablab.instruments.curvature.diagonal import (
        hessian_diagonal as hessian_diagonal,
    )
    from nablab.instruments.curvature.eigenvalues import Eigenvalues as Eigenvalues
    from nablab.instruments.curvature.eigenvalues import (
        eigenvalues_of as eigenvalues_of,
    )
    from nablab.instruments.curvature.eigenvalues import (
        hessian_eigenvalues as hessian_eigenvalues,
    )
    from nablab.instruments.curvature.gauss_newton import (
        GaussNewtonOperator as GaussNewtonOperator,
    )
    from nablab.instruments.curvature.hessian_matrix import (
        HessianMatrix as HessianMatrix,
    )
    from nablab.instruments.curvature.hessian_matrix import (
        hessian_matrix as hessian_matrix,
    )
    from nablab.instruments.curvature.inertia import Inertia as Inertia
    from nablab.instruments.curvature.inertia import inertia as inertia
    from nablab.instruments.curvature.operators import (
        HessianOperator as HessianOperator,
    )
    from nablab.instruments.curvature.trace import Trace as Trace
    from nablab.instruments.curvature.trace import hessian_trace as hessian_trace
    from nablab.instruments.curvature.trace import trace_of as trace_of
    from nablab.instruments.gradients.gradient_monitor import (
        GradientMonitor as GradientMonitor,
    )
    from nablab.instruments.gradients.gradient_monitor import (
        update_ratio as update_ratio,
    )
    from nablab.instruments.gradients.gradient_norm import GradientNorm as GradientNorm
    from nablab.instruments.gradients.gradient_norm import (
        gradient_norm as gradient_norm,
    )
    from nablab.instruments.gradients.sensitivity import (
        InputSensitivity as InputSensitivity,
    )
    from nablab.instruments.gradients.sensitivity import (
        input_sensitivity as input_sensitivity,
    )
    from nablab.instruments.gradients.sharpness import Sharpness as Sharpness
    from nablab.instruments.gradients.sharpness import sharpness as sharpness
    from nablab.instruments.gradients.through_time import (
        state_gradient_norms as state_gradient_norms,
    )
    from nablab.instruments.landscape.interpolation import (
        Interpolation as Interpolation,
    )
    from nablab.instruments.landscape.interpolation import interpolate as interpolate
    from nablab.instruments.landscape.matching import Matching as Matching
    from nablab.instruments.landscape.matching import match_units as match_units
    from nablab.instruments.landscape.permutations import (
        find_specification as find_specification,
    )
    from nablab.instruments.landscape.planes import LossPlane as LossPlane
    from nablab.instruments.landscape.planes import loss_plane as loss_plane
    from nablab.instruments.landscape.trajectories import TrajectoryPCA as TrajectoryPCA
    from nablab.instruments.landscape.trajectories import (
        random_walk_shares as random_walk_shares,
    )
    from nablab.instruments.landscape.trajectories import (
        trajectory_pca as trajectory_pca,
    )

# What `cost` and the command line can call.
INSTRUMENTS = (
    "find_critical_point",
    "gradient_norm",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "hessian_matrix",
    "hessian_trace",
    "inertia",
    "input_sensitivity",
    "interpolate",
    "loss_plane",
    "match_units",
    "sharpness",
    "spectral_density",
    "trajectory_pca",
)

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "base.losses": "Closure Penalized",
        "base.measurement": "Measurement",
        "base.objective": "Objective",
        "base.replica_objective": "ReplicaObjective",
        "base.replicas": "Replicas",
        "costs": "Cost cost",
        "counters": "count_labels count_next_tokens",
        "curvature.critical_points": "CriticalPoint find_critical_point",
        "curvature.density": "SpectralDensity density_of spectral_density",
        "curvature.diagonal": "Diagonal diagonal_of hessian_diagonal",
        "curvature.eigenvalues": "Eigenvalues eigenvalues_of hessian_eigenvalues",
        "curvature.hessian_matrix": "HessianMatrix hessian_matrix",
        "curvature.inertia": "Inertia inertia",
        "curvature.gauss_newton": "GaussNewtonOperator",
        "curvature.operators": "HessianOperator",
        "curvature.trace": "Trace hessian_trace trace_of",
        "gradients.gradient_monitor": "GradientMonitor update_ratio",
        "gradients.gradient_norm": "GradientNorm gradient_norm",
        "gradients.sensitivity": "InputSensitivity input_sensitivity",
        "gradients.sharpness": "Sharpness sharpness",
        "gradients.through_time": "state_gradient_norms",
        "landscape.interpolation": "Interpolation interpolate",
        "landscape.matching": "Matching match_units",
        "landscape.permutations": "find_specification",
        "landscape.planes": "LossPlane loss_plane",
        "landscape.trajectories": "TrajectoryPCA random_walk_shares trajectory_pca",
    },
)

__all__ = [
    "INSTRUMENTS",
    "Closure",
    "Cost",
    "CriticalPoint",
    "Diagonal",
    "Eigenvalues",
    "GaussNewtonOperator",
    "GradientMonitor",
    "GradientNorm",
    "HessianMatrix",
    "HessianOperator",
    "Inertia",
    "InputSensitivity",
    "Interpolation",
    "LossPlane",
    "Matching",
    "Measurement",
    "Objective",
    "Penalized",
    "ReplicaObjective",
    "Replicas",
    "Sharpness",
    "SpectralDensity",
    "Trace",
    "TrajectoryPCA",
    "cost",
    "count_labels",
    "count_next_tokens",
    "density_of",
    "diagonal_of",
    "eigenvalues_of",
    "find_critical_point",
    "find_specification",
    "gradient_norm",
    "hessian_diagonal",
    "hessian_eigenvalues",
    "hessian_matrix",
    "hessian_trace",
    "inertia",
    "input_sensitivity",
    "interpolate",
    "loss_plane",
    "match_units",
    "random_walk_shares",
    "sharpness",
    "spectral_density",
    "state_gradient_norms",
    "trace_of",
    "trajectory_pca",
    "update_ratio",
]
