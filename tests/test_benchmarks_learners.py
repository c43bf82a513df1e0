"""The benchmark of a learner's step: both sides learn, and the table says the rest."""

from __future__ import annotations

import torch

from benchmarks import learners


def test_both_sides_train_the_same_network_on_the_same_task() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(learners.SAMPLES, 20, generator=generator)
    y = x[:, :1] * 2
    for side in (learners.by_the_lab, learners.by_hand):
        losses = side(x, y, 200)
        assert len(losses) == 200
        assert losses[-1] < 0.2 * losses[0]


def test_the_table_says_what_a_step_costs() -> None:
    before = torch.get_num_threads()
    findings = learners.measure(repeats=2, steps=20)
    assert torch.get_num_threads() == before
    (table,), (goal,) = findings.tables, findings.goals
    assert [row[0] for row in table.rows] == [learners.OURS, learners.BARE]
    assert goal.measured.endswith(" %")
    assert "Overhead" in table.notes[0]
