"""Which engine is chosen, and what is said about it."""

import pytest
import torch
from torch import nn

from nablab.errors import UsageError
from nablab.training import Unsupported, choose, fit
from nablab.training.fused import compiler


def dense():
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))


def normed():
    return nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.Linear(6, 1))


def wide():
    return nn.Sequential(
        nn.Linear(2, 1200),
        nn.LayerNorm(1200),
        nn.Linear(1200, 1200),
        nn.Linear(1200, 1),
    )


def dropping():
    return nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5), nn.Linear(6, 1))


def engine_of(build, *, seeds=3, replicas="auto", **options):
    notes = []
    x = torch.ones(8, 2)
    result = fit(
        build,
        (x, x[:, :1]),
        seeds=range(seeds),
        steps=1,
        replicas=replicas,
        on_note=notes.append,
        **options,
    )
    return result.engine, " ".join(notes)


@pytest.mark.parametrize(
    ("build", "options", "engine", "reason"),
    [
        (dense, {}, "fused", "Training 3 replicas with the fused engine."),
        (dense, {"replicas": "batched"}, "fused", "fused engine"),
        (dense, {"replicas": "sequential"}, "sequential", "sequential engine."),
        (normed, {}, "batched", "not fused"),
        (normed, {"seeds": 2}, "sequential", "fewer than 3 replicas"),
        (normed, {"seeds": 1, "replicas": "batched"}, "batched", "not fused"),
        (dropping, {}, "sequential", "not batched: the network has dropout"),
        (wide, {}, "sequential", "not batched: with 69 million operations"),
        (wide, {"replicas": "batched"}, "batched", "batched engine"),
        (wide, {"batch_size": 4}, "batched", "batched engine"),
    ],
)
def test_the_choice_and_its_reason(build, options, engine, reason):
    chosen, note = engine_of(build, **options)
    assert chosen == engine, note
    assert reason in note


def test_without_a_compiler_the_batched_engine_serves(monkeypatch):
    def refuse(*arguments, **options):
        raise Unsupported("no C compiler found")

    monkeypatch.setattr(choose, "FusedEngine", refuse)
    assert engine_of(dense) == (
        "batched",
        "Training 3 replicas with the batched engine (not fused: no C compiler found).",
    )


def test_a_processor_without_tiles_trains_in_another_engine(monkeypatch, tmp_path):
    """The kernel compiles for a plain processor too, and says that it cannot serve."""
    compiler._compiler()  # without one there is nothing to compile
    monkeypatch.setattr(compiler, "_MACHINE_OPTIONS", ((),))
    monkeypatch.setenv("NABLAB_CACHE", str(tmp_path))
    notes = []
    x, y = torch.randn(20, 8), torch.arange(20) % 3
    options = {
        "loss": "cross_entropy",
        "precision": "bfloat16",
        "steps": 2,
        "batch_size": 10,
    }
    build = lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))  # noqa: E731
    result = fit(build, (x, y), seeds=[1], on_note=notes.append, **options)
    assert result.engine == "sequential"
    assert "not fused-bfloat16: the processor has no matrix tiles" in " ".join(notes)


def test_batched_or_nothing_names_the_remedy():
    with pytest.raises(
        UsageError, match=r"dropout.*Use replicas='sequential' or replicas='auto'"
    ):
        engine_of(dropping, replicas="batched")


def test_without_a_listener_the_choice_is_logged(caplog):
    x = torch.ones(8, 2)
    with caplog.at_level("INFO", logger="nablab.training"):
        fit(dense, (x, x[:, :1]), seeds=[0], steps=1)
    assert "engine" in caplog.text
