"""Threads sleep while they wait, in every process that nablab starts or is; what the
user has set stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from nablab import threads

KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SHOW = f"import os; print([os.environ.get(key) for key in {KEYS}])"


def child(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in KEYS
    }
    return subprocess.run(
        [sys.executable, *words],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
    )


def test_importing_nablab_sets_it_for_what_is_loaded_later() -> None:
    assert (
        child("-c", f"import nablab; {SHOW}").stdout.strip() == "['PASSIVE', '0', '0']"
    )


@pytest.mark.parametrize(
    "own",
    [
        {"OMP_WAIT_POLICY": "ACTIVE"},
        {"GOMP_SPINCOUNT": "1000"},
        {"KMP_BLOCKTIME": "200"},
    ],
)
def test_what_the_user_has_set_stays(
    own: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    for key, value in own.items():
        monkeypatch.setenv(key, value)
    threads.wait_passively()
    assert {key: os.environ[key] for key in KEYS if key in os.environ} == dict(own)


def test_the_library_that_pytorch_brings_has_taken_it() -> None:
    """GNU's OpenMP says with which settings it was loaded."""
    program = "import nablab, torch; print(torch.__config__.parallel_info())"
    done = child("-c", program, OMP_DISPLAY_ENV="VERBOSE")
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this PyTorch has another OpenMP library")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


@pytest.mark.parametrize(
    "words", [("-m", "nablab"), ("-c", "from nablab.cli.main import main; main()")]
)
def test_commands_set_it_before_they_load_anything(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """An experiment of the user's, imported by the command, sees what is set."""
    (tmp_path / "look.py").write_text(
        SHOW.replace("print(", "open('seen', 'w').write(str(") + ")"
    )
    arguments = ["list"] if words[0] == "-m" else []
    program = (
        (*words, *arguments)
        if arguments
        else ("-c", words[1].replace("main()", "main(['list'])"))
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in KEYS
    }
    subprocess.run(
        [sys.executable, *program],
        env=environment | {"NABLAB_EXPERIMENTS": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "seen").read_text() == "['PASSIVE', '0', '0']"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("200000 100000", 2.0),
        ("50000 100000", 0.5),
        ("max 100000", None),
        ("", None),
        ("1 2 3", None),
    ],
)
def test_the_quota_of_a_container_is_read(
    content: str, expected: float | None, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert threads._quota(tmp_path / "cpu.max") == expected
    assert threads._quota(tmp_path / "missing") is None


def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = threads.cores()
    monkeypatch.setattr(threads, "_quota", lambda file: 0.3)
    assert threads.cores() == 1
    monkeypatch.setattr(threads, "_quota", lambda file: 1000.0)
    assert threads.cores() >= everything
