"""Output may go away; what runs goes on, and says at its end that somebody may miss
something.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nablab.cli import lasting

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
PROGRAM = """
import sys
from nablab.cli import lasting
lasting.make_lasting()
lasting.make_lasting()
for _ in range(20_000):
    print("a line of some length")
print("still here", file=sys.stderr)
sys.exit(3 if lasting.lost() else 4)
"""


def run(**options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, check=False, text=True, stderr=subprocess.PIPE, **options
    )  # type: ignore[call-overload,no-any-return]


def test_all_is_written_where_it_can_be(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        done = run(stdout=file)
    assert (done.returncode, done.stderr) == (4, "still here\n")
    assert (tmp_path / "out").read_text() == "a line of some length\n" * 20_000


@needs_full
def test_a_full_disk_is_remembered() -> None:
    with FULL.open("w") as file:
        done = run(stdout=file)
    assert (done.returncode, done.stderr) == (3, "still here\n")


def test_a_reader_who_left_misses_nothing() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (4, "still here\n")
    process.stderr.close()


def test_closed_output_is_nowhere() -> None:
    done = subprocess.run(
        f"{sys.executable} -c '{PROGRAM}' >&- 2>&-",
        shell=True,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "")


def test_what_stands_in_for_output_stays() -> None:
    before = sys.stdout, sys.stderr
    lasting.make_lasting()
    assert (sys.stdout, sys.stderr) == before
    assert lasting.lost() is None


@needs_full
@pytest.mark.parametrize(
    "words", [["list"], ["show", "sharpness", "--json"], ["--help"]]
)
def test_a_command_that_cannot_print_fails_in_one_sentence(words: list[str]) -> None:
    with FULL.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "nablab", *words],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "Not all output could be written: No space left on device. Runs are kept.\n"
    )


def test_a_command_whose_output_is_closed_works() -> None:
    done = subprocess.run(
        f"{sys.executable} -m nablab list >&-",
        shell=True,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
