"""Training: one loop, several engines for replicas, optimizers, schedules, stopping rules, probes.

A name is imported when it is first used, so that importing this package does not import PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.training.batched import BatchedEngine
    from nablab.training.checkpoints import Checkpoint
    from nablab.training.engine import Engine, Loss, Unsupported
    from nablab.training.fused.bfloat16 import FusedBfloat16Engine
    from nablab.training.fused.dense import FusedEngine
    from nablab.training.fused.images import FusedImageEngine
    from nablab.training.gradients import GradientNorms
    from nablab.training.inputs import Augment, Inputs, Precision, Prepare
    from nablab.training.loop import Progress, fit
    from nablab.training.optimizers import SGD, Adam, AdamW, RMSprop, Specification
    from nablab.training.probes import Context, Probe
    from nablab.training.recording import WeightRecorder, path_array, path_from_array
    from nablab.training.result import Training
    from nablab.training.schedules import Constant, Cosine, Exponential, Linear, Schedule, StepDecay
    from nablab.training.seeding import SharedStart, build_replicas, derive, generator
    from nablab.training.sequential import SequentialEngine
    from nablab.training.speed import Speed, measure_speed
    from nablab.training.stacked import StackedPredictor, stacked_predictor
    from nablab.training.stopping import EarlyStopping, Plateau, Rule, Threshold
    from nablab.training.task import OwnLabels

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "batched": "BatchedEngine",
        "checkpoints": "Checkpoint",
        "engine": "Engine Loss Unsupported",
        "fused.dense": "FusedEngine",
        "fused.bfloat16": "FusedBfloat16Engine",
        "fused.images": "FusedImageEngine",
        "gradients": "GradientNorms",
        "inputs": "Augment Inputs Precision Prepare",
        "loop": "Progress fit",
        "optimizers": "SGD Adam AdamW RMSprop Specification",
        "probes": "Context Probe",
        "recording": "WeightRecorder path_array path_from_array",
        "result": "Training",
        "schedules": "Constant Cosine Exponential Linear Schedule StepDecay",
        "seeding": "SharedStart build_replicas derive generator",
        "sequential": "SequentialEngine",
        "speed": "Speed measure_speed",
        "stacked": "StackedPredictor stacked_predictor",
        "stopping": "EarlyStopping Plateau Rule Threshold",
        "task": "OwnLabels",
    },
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Augment",
    "BatchedEngine",
    "Checkpoint",
    "Constant",
    "Context",
    "Cosine",
    "EarlyStopping",
    "Engine",
    "Exponential",
    "FusedBfloat16Engine",
    "FusedEngine",
    "FusedImageEngine",
    "GradientNorms",
    "Inputs",
    "Linear",
    "Loss",
    "OwnLabels",
    "Plateau",
    "Precision",
    "Prepare",
    "Probe",
    "Progress",
    "RMSprop",
    "Rule",
    "Schedule",
    "SequentialEngine",
    "SharedStart",
    "Specification",
    "Speed",
    "StackedPredictor",
    "StepDecay",
    "Threshold",
    "Training",
    "Unsupported",
    "WeightRecorder",
    "build_replicas",
    "derive",
    "fit",
    "generator",
    "measure_speed",
    "path_array",
    "path_from_array",
    "stacked_predictor",
]
