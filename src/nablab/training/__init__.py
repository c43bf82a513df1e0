"""Training: one loop, several engines, optimizers, schedules, stopping rules, probes.

A name is imported when it is first used, so that importing this package does not import
PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nablab.importing.lazy import lazy_names

if TYPE_CHECKING:
    from nablab.training.batched import BatchedEngine
    from nablab.training.batches import steps_per_epoch
    from nablab.training.checkpoints import Checkpoint
    from nablab.training.datasets import Arrays, Dataset, PerTrial, Sequences, Subset
    from nablab.training.engine import CrossEntropy, Engine, Loss, Unsupported
    from nablab.training.fitting import fit, train
    from nablab.training.fused.bags import FusedBagsEngine
    from nablab.training.fused.bfloat16 import FusedBfloat16Engine
    from nablab.training.fused.dense import FusedEngine
    from nablab.training.fused.images import FusedImageEngine
    from nablab.training.gradients import GradientNorms
    from nablab.training.inputs import (
        Augment,
        Inputs,
        Precision,
        Prepare,
        convolution_precision,
    )
    from nablab.training.learners import Learner, Minimize, State, Supervised
    from nablab.training.loop import Progress
    from nablab.training.metric import Accuracy, Metric, Score
    from nablab.training.moments import Moment
    from nablab.training.muon import Muon
    from nablab.training.optimizers import (
        SGD,
        Adam,
        AdamW,
        RMSprop,
        Specification,
        optimizer,
    )
    from nablab.training.probes import Context, Probe
    from nablab.training.recipe import Recipe
    from nablab.training.recording import WeightRecorder, path_array, path_from_array
    from nablab.training.result import Outcome, Training
    from nablab.training.samplers import Alternating, Bucketed, Folds, Sampler, Shuffled
    from nablab.training.schedules import (
        Constant,
        Cosine,
        Exponential,
        Linear,
        Schedule,
        StepDecay,
    )
    from nablab.training.seeding import build_replicas, derive, generator
    from nablab.training.sequential import SequentialEngine
    from nablab.training.speed import Speed, measure_speed
    from nablab.training.stacked import StackedPredictor, stacked_predictor
    from nablab.training.stopping import EarlyStopping, Plateau, Rule, Threshold
    from nablab.training.task import PerReplicaTargets

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "batched": "BatchedEngine",
        "batches": "steps_per_epoch",
        "checkpoints": "Checkpoint",
        "engine": "CrossEntropy Engine Loss Unsupported",
        "fused.dense": "FusedEngine",
        "fused.bags": "FusedBagsEngine",
        "fused.bfloat16": "FusedBfloat16Engine",
        "fused.images": "FusedImageEngine",
        "gradients": "GradientNorms",
        "inputs": "Augment Inputs Precision Prepare convolution_precision",
        "fitting": "fit train",
        "loop": "Progress",
        "optimizers": "SGD Adam AdamW RMSprop Specification optimizer",
        "probes": "Context Probe",
        "recording": "WeightRecorder path_array path_from_array",
        "result": "Outcome Training",
        "schedules": "Constant Cosine Exponential Linear Schedule StepDecay",
        "seeding": "build_replicas derive generator",
        "sequential": "SequentialEngine",
        "speed": "Speed measure_speed",
        "stacked": "StackedPredictor stacked_predictor",
        "stopping": "EarlyStopping Plateau Rule Threshold",
        "datasets": "Arrays Dataset PerTrial Sequences Subset",
        "learners": "Learner Minimize State Supervised",
        "metric": "Accuracy Metric Score",
        "moments": "Moment",
        "muon": "Muon",
        "recipe": "Recipe",
        "samplers": "Alternating Bucketed Folds Sampler Shuffled",
        "task": "PerReplicaTargets",
    },
)

__all__ = [
    "SGD",
    "Accuracy",
    "Adam",
    "AdamW",
    "Alternating",
    "Arrays",
    "Augment",
    "BatchedEngine",
    "Bucketed",
    "Checkpoint",
    "Constant",
    "Context",
    "Cosine",
    "CrossEntropy",
    "Dataset",
    "EarlyStopping",
    "Engine",
    "Exponential",
    "Folds",
    "FusedBagsEngine",
    "FusedBfloat16Engine",
    "FusedEngine",
    "FusedImageEngine",
    "GradientNorms",
    "Inputs",
    "Learner",
    "Linear",
    "Loss",
    "Metric",
    "Minimize",
    "Moment",
    "Muon",
    "Outcome",
    "PerReplicaTargets",
    "PerTrial",
    "Plateau",
    "Precision",
    "Prepare",
    "Probe",
    "Progress",
    "RMSprop",
    "Recipe",
    "Rule",
    "Sampler",
    "Schedule",
    "Score",
    "Sequences",
    "SequentialEngine",
    "Shuffled",
    "Specification",
    "Speed",
    "StackedPredictor",
    "State",
    "StepDecay",
    "Subset",
    "Supervised",
    "Threshold",
    "Training",
    "Unsupported",
    "WeightRecorder",
    "build_replicas",
    "convolution_precision",
    "derive",
    "fit",
    "generator",
    "measure_speed",
    "optimizer",
    "path_array",
    "path_from_array",
    "stacked_predictor",
    "steps_per_epoch",
    "train",
]
