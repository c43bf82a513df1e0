"""Runs command lines in forks of one process that has imported and compiled everything;
started by `runner.Server`.

Reads one JSON request a line and answers with one. Each command has its own process,
memory and time: more address space than that ends in a MemoryError, more time in a
signal.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    sys.setswitchinterval(0.005)
    import matplotlib.figure
    import scipy.optimize
    import torch

    from nablab import runs, training
    from nablab.cli import measuring
    from nablab.cli.main import main
    from nablab.report import page
    from nablab.training.fused import compiler

    assert all(
        (matplotlib.figure, scipy.optimize, torch, measuring, runs, training, page)
    )
    # else the first command in a new cache is charged with the C compiler's seconds
    compiler.load("float")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(main, request)), file=answers, flush=True)


def stub_training() -> None:
    """Let experiments be planned and not trained: what a quick battery has no time for."""
    from nablab import runs
    from nablab.lab.rehearsal import Estimate

    rehearse, run_plan = runs.rehearse, runs.run_plan

    def quick_rehearse(plan: Any, **options: Any) -> Any:
        if plan.experiment.name == "toy":
            return rehearse(plan, **options)
        return [Estimate() for _ in plan.groups]

    def quick_run(plan: Any, **options: Any) -> Any:
        if plan.experiment.name == "toy":
            return run_plan(plan, **options)
        raise KeyboardInterrupt

    runs.rehearse, runs.run_plan = quick_rehearse, quick_run


def answer(command: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run one command line in a fork."""
    out, err = (Path(request["folder"]) / name for name in (".stdout", ".stderr"))
    process = os.fork()
    if process == 0:
        in_child(command, request, out, err)
    _, status, usage = os.wait4(process, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "stdout": out.read_bytes().decode(errors="replace"),
        "stderr": err.read_bytes().decode(errors="replace"),
        "seconds": usage.ru_utime + usage.ru_stime,
        "bytes": usage.ru_maxrss * 1024,
    }


def without_privileges() -> None:
    """Let permissions of files hold for root, too, as they do for everybody else."""
    if os.geteuid() == 0:
        version, this_process, none = 0x20080522, 0, [0] * 6
        header = (ctypes.c_uint32 * 2)(version, this_process)
        ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)(*none))


def in_child(command: Any, request: dict[str, Any], out: Path, err: Path) -> None:
    try:
        if request["stubbed"]:
            stub_training()
        os.chdir(request["folder"])
        for descriptor, path in ((0, Path(os.devnull)), (1, out), (2, err)):
            flags = (
                os.O_RDONLY
                if descriptor == 0
                else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            )
            os.dup2(os.open(path, flags, 0o600), descriptor)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(
                os.fdopen(os.dup(n), "wb"), encoding="utf-8", line_buffering=True
            )
            for n in (1, 2)
        )
        without_privileges()
        taken = (
            int(Path("/proc/self/statm").read_text().split()[0])
            * resource.getpagesize()
        )
        resource.setrlimit(resource.RLIMIT_AS, (taken + request["bytes"],) * 2)
        resource.setrlimit(
            resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + 5)
        )
        signal.alarm(20 * request["seconds"])
        try:
            command(request["words"])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 99
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}".encode())
        code = 98
    os._exit(code)


if __name__ == "__main__":
    main()
