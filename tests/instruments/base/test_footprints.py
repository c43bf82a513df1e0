"""Seconds and bytes of a piece of work, against work whose bytes are known."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
import torch

from nablab.errors import UsageError
from nablab.instruments.base.footprints import counting_bytes, footprint

CPU = torch.device("cpu")
MEGABYTE = 2**20


def test_peak_and_rest_are_counted_to_the_byte() -> None:
    def work() -> torch.Tensor:
        first = torch.empty(MEGABYTE, dtype=torch.uint8)
        second = torch.empty(2 * MEGABYTE, dtype=torch.uint8)
        del first
        third = torch.empty(MEGABYTE, dtype=torch.uint8)
        del second
        return third

    taken = footprint(work, CPU)
    assert (taken.peak, taken.kept) == (3 * MEGABYTE, MEGABYTE)


def test_temporary_tensors_inside_pytorch_count() -> None:
    matrix, right = torch.randn(256, 256), torch.randn(256)
    with counting_bytes() as count:
        solution = torch.linalg.solve(matrix, right)
    assert count.kept == 4 * 256
    assert count.peak >= 4 * 256 * 256  # a copy is factored in place
    del solution


def test_what_was_there_before_does_not_count() -> None:
    before = [torch.empty(MEGABYTE, dtype=torch.uint8)]
    with counting_bytes() as count:
        after = before[0].clone()
        before.clear()
    assert count.peak == MEGABYTE
    del after


def test_arrays_count_where_they_are_asked_for() -> None:
    for arrays, least, most in ((False, 0, 0), (True, MEGABYTE, 1.1 * MEGABYTE)):
        with counting_bytes(arrays=arrays) as count:
            array: Any = np.ones(MEGABYTE, dtype=np.uint8)
            del array
        assert least <= count.peak <= most


def test_an_error_inside_ends_the_counting() -> None:
    collecting = gc.isenabled()
    with pytest.raises(ZeroDivisionError), counting_bytes(arrays=True):
        raise ZeroDivisionError
    assert gc.isenabled() == collecting
    with counting_bytes() as count:
        kept = torch.empty(MEGABYTE, dtype=torch.uint8)
    assert count.kept == MEGABYTE
    del kept


def test_a_profiler_that_runs_is_left_alone() -> None:
    with (
        torch.autograd.profiler_legacy.profile(),
        pytest.raises(UsageError, match="profiler runs"),
    ):
        footprint(lambda: None, CPU)


def test_short_work_is_repeated_and_its_fastest_run_counts() -> None:
    pauses = iter([0.06, 0.03, *[0.01] * 100])
    runs = []

    def work() -> None:
        runs.append(0)
        time.sleep(next(pauses))

    assert 0.01 <= footprint(work, CPU).seconds < 0.03
    assert len(runs) >= 4


def test_long_work_is_done_once() -> None:
    runs = []

    def work() -> None:
        runs.append(0)
        time.sleep(0.4)

    assert footprint(work, CPU).seconds >= 0.4
    assert len(runs) == 1
