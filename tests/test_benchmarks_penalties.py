"""The benchmark of penalties: its sides train the same network, and the table says the
rest.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import penalties


@pytest.fixture(scope="module")
def pair() -> penalties.Samples:
    torch.set_num_threads(1)
    x, y = penalties.samples()
    return x[:2_000], y[:2_000]


def test_the_lab_and_the_plain_loop_agree_before_the_clock_starts(
    pair: penalties.Samples,
) -> None:
    assert penalties.largest_difference(pair) < penalties.TOLERANCE
    loader = penalties.batches_by_loader(pair)
    losses = penalties.by_hand(pair, 30, loader)
    assert losses[-1] < losses[0]


def test_the_path_is_as_large_as_the_table_says(
    pair: penalties.Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert penalties.by_the_lab(pair, 3, seeds=2) == (4 * 8 + 8) * 2 * 3
    monkeypatch.setattr(penalties, "samples", lambda: pair)
    findings = penalties.measure(repeats=1, steps=2, seeds=1)
    (table,), (goal,) = findings.tables, findings.goals
    assert [row[0] for row in table.rows] == [
        penalties.OURS,
        penalties.LOOP,
        penalties.LOADER,
    ]
    assert "40 networks here" in table.notes[0]
    assert goal.measured.endswith("x")


def test_unequal_sides_do_not_race(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalties, "largest_difference", lambda _: 0.1)
    with pytest.raises(RuntimeError, match="losses differ by"):
        penalties.measure(repeats=1, steps=1)
