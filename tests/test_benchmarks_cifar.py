"""The benchmark of CIFAR-10: both sides compute the same network."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import cifar
from benchmarks.peers import airbench
from nablab import baselines, data, models

SPEC = "digits@90"  # embedded, brought to color and 32 x 32 pixels


def test_both_sides_have_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airbench, "WIDTHS", (4, 8, 8))
    theirs = airbench.network(bias=True).float().eval()
    filters = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    ours = models.FastConvolutional(filters, widths=(4, 8, 8)).eval()
    with torch.no_grad():
        theirs[0].weight.copy_(ours.filters)
        theirs[0].bias.zero_()
        # The peer's other weights, in its order: all convolutions and the head.
        matrices = [p for p in theirs.parameters() if p.ndim > 1][1:]
        own = [p for p in ours.parameters() if p.ndim > 1]
        for mine, its in zip(own, matrices, strict=True):
            mine.copy_(its)
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_the_table_names_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(
        baselines.BUDGETS[80], widths=(4, 8), epochs=1, batch_size=30
    )
    monkeypatch.setattr(airbench, "WIDTHS", (4, 8, 8))
    monkeypatch.setattr(
        baselines.fast_images, "BUDGETS", {80: small, 94: small}, raising=True
    )
    monkeypatch.setattr(cifar.baselines, "BUDGETS", {80: small, 94: small})
    findings = cifar.measure(
        SPEC, repeats=1, steps=1, batch=20, budgets=(80,), say=lambda _: None
    )
    race, trained = findings.tables
    assert [row[0] for row in race.rows] == [cifar.OURS, cifar.PEER, cifar.FROZEN]
    assert findings.goals[0].measured.endswith("x")
    assert trained.rows[0][0] == "80 %"
    assert "% in" in findings.goals[1].measured


def test_the_budgets_are_those_of_the_goals() -> None:
    assert set(cifar.LIMITS) == set(baselines.BUDGETS)
    train = data.image_task(SPEC, size=32, channels=3).images()
    for own in baselines.BUDGETS.values():
        recipe = own.recipe(train)
        assert recipe.budget(own.recipe(train).sampler.batches_per_epoch) > 0
