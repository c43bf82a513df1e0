"""Whatever happened to a file of the store: no traceback, and no other number without a
word.

Every file of a run that was killed is damaged in every way of a table, and read by
every command that reads. A command may go on without the file or refuse it; either it
names the file, or what it answers is what it answers without the damage. The ordinary
suite takes a part of the product, the slow one more of it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nablab import runs
from nablab.lab import files
from tests.conftest import Nablab

EXPERIMENTS = Path(__file__).parent / "plain"
# one in so many of all combinations is tried in the ordinary suite
PART, FIELDS = (17, 307)
# and of the combinations of fields, some ten thousand, in the slow one
FIELDS_SLOW = 13


# --- the damages --------------------------------------------------------------


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


def text(path: Path) -> None:
    path.write_text("not what it was")


def null(path: Path) -> None:
    path.write_text("null")


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


def a_number(path: Path) -> None:
    path.write_text("17")


def nested(path: Path) -> None:
    path.write_text('{"format": ' + "[" * 100_000 + "]" * 100_000 + "}")


def nested_a_little(path: Path) -> None:
    path.write_text('{"format": ' + "[" * 200 + "]" * 200 + "}")


def utf_16(path: Path) -> None:
    path.write_bytes(path.read_bytes().decode(errors="replace").encode("utf-16"))


def latin_1(path: Path) -> None:
    path.write_bytes(b'{"preset": "\xe9"}')


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def unreadable(path: Path) -> None:
    """A link to itself: the one file that root may not read either."""
    path.unlink()
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WHOLE = (
    missing, empty, truncated, flipped, zeros, text, null, a_list, a_number, nested,
    nested_a_little, utf_16, latin_1, a_folder, a_link_to_nothing, unreadable, a_pipe,
)  # fmt: skip

# Of one field, with the checksum made right again or left out, as an earlier version
# wrote none.
WRONG = {
    "null": None,
    "a list": [1, [2]],
    "an object": {"a": 1},
    "a number as text": "5",
    "text": "\x1b[31mred",
    "negative": -1,
    "a fraction": 2.5,
    "huge": 10**400,
    "larger than floating point": "RAW:1e999",
    "NaN": "RAW:NaN",
    "infinite": "RAW:-Infinity",
    "a half character": 'RAW:"\\ud800"',
    "true": True,
}
NOTHING = object()


def with_field(path: Path, place: tuple[str, ...], value: Any, *, seal: bool) -> None:
    """Change or remove one field of a JSON file, however deep."""
    content = json.loads(path.read_text())
    owner = content
    for name in place[:-1]:
        owner = owner[name]
    raw = value[4:] if isinstance(value, str) and value.startswith("RAW:") else None
    if value is NOTHING:
        del owner[place[-1]]
    else:
        owner[place[-1]] = "RAW" if raw else value
    content.pop(files.SEAL, None)
    if seal:
        content[files.SEAL] = files.seal(content)
    written = json.dumps(content)
    path.write_text(written.replace('"RAW"', raw) if raw else written)


def places_in(value: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Every field of a JSON object but its checksum, the deeper ones, too."""
    for name, part in value.items():
        if name == files.SEAL:
            continue
        yield (name,)
        if isinstance(part, dict):
            yield from ((name, *rest) for rest in places_in(part))


# --- the run ------------------------------------------------------------------


FILES = (
    "config.json", "status.json", "provenance/*.json", "verdicts.json",
    "trials/*-s1/trial.json", "trials/*-s1/arrays.npz",
    "trials/*-s1/weights-squares.safetensors", "checkpoints/*.json",
    "checkpoints/*.safetensors", "progress/*.json", "failures/*.json", "report.html",
    "scalars.csv", "figures/*.svg",
)  # fmt: skip
JSON_FILES = tuple(
    name for name in FILES if name.endswith(".json") and not name.startswith("failures")
)
COMMANDS = {
    "runs": ("runs", "--json"),
    "report": ("report", "{run}"),
    "compare": ("compare", "{run}", "{other}"),
    "run": ("run", "arithmetic", "--preset", "quick"),
    "run --fresh": ("run", "arithmetic", "--preset", "quick", "--fresh"),
}
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Base:
    """A run that was killed before its last trial, beside another run.

    Attributes:
        store: The folder of runs.
        place: The run's folder in it.
        other: The other run's id.
    """

    store: Path
    place: str
    other: str


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    store = tmp_path_factory.mktemp("base") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NABLAB_EXPERIMENTS", str(EXPERIMENTS))
        patch.setattr(os, "fsync", lambda _: None)
        other = runs.run("arithmetic", preset="quick", noise=0.25, store=store).folder
        done = runs.run("arithmetic", preset="quick", store=store)
        folder, condition = done.folder, done.experiment.conditions()[1]
        shutil.rmtree(folder.trial_path(condition, 4))
        key = folder.condition_key(condition)
        folder.write_json(f"checkpoints/{key}.json", {"seeds": [0, 1, 2, 3, 4]})
        (folder.path / "checkpoints" / f"{key}-0.safetensors").write_bytes(b"half")
        progress = {
            "condition": dict(condition), "replicas": 5, "part": 1, "step": 3,
            "steps": 10, "rate": 5.0, "loss": float("nan"), "time": 1.0,
        }  # fmt: skip
        folder.write_json(f"progress/{key}.json", progress)
        folder.write_json(f"failures/{key}.json", {"message": "", "traceback": ""})
        runs.open_run(str(folder.path)).write()
        (folder.path / "figures").mkdir(exist_ok=True)
        (folder.path / "figures" / "squares.svg").write_text("<svg/>")
        yield Base(store, str(folder.path.relative_to(store)), other.path.name)


@dataclass
class Trial:
    """Gives commands to copies of the base whose files have been damaged."""

    base: Base
    place: Path
    call: Nablab
    answers: dict[str, Any]

    def answer(
        self, name: str, damage: Callable[[Path], None], command: str
    ) -> tuple[Any, str, int]:
        """What a command answers of the numbers, all that it says, and its exit code."""
        store = self.place / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.base.store, store, symlinks=True)
        folder = store / self.base.place
        path = sorted(folder.glob(name))[0]
        damage(path)
        words = [
            word.format(run=folder.name, other=self.base.other)
            for word in COMMANDS[command]
        ]
        done = self.call(*words, "--store", str(store))
        said = done.stdout + done.stderr
        named = path.name in said or (
            name.startswith("trials/") and path.parent.name in said
        )
        assert "Traceback" not in said, said
        assert "should not happen" not in said, said
        assert not STEERING.search(said), said
        assert done.returncode in (0, 1, 2), said
        assert done.returncode == 0 or named or folder.name in said, said
        if done.returncode:
            return None, said, done.returncode
        if command == "runs":
            facts = next(
                one for one in json.loads(done.stdout) if one["run"] == folder.name
            )
            answer = [
                facts[fact]
                for fact in ("experiment", "preset", "state", "trials", "verdicts")
            ]
        elif command == "compare":
            answer = done.stdout[done.stdout.index("\nVerdicts") :]
        else:
            verdicts = json.loads((folder / "verdicts.json").read_text())["verdicts"]
            answer = [
                (v["claim"], v["outcome"], v["effect"], v["interval"]) for v in verdicts
            ]
        return answer, said if named else "", 0

    def check(self, name: str, damage: Callable[[Path], None], command: str) -> None:
        """The answer is that of the undamaged run, or the file is named; training mends
        what it can.
        """
        if command not in self.answers:
            self.answers[command] = self.answer("config.json", lambda _: None, command)[
                0
            ]
        answer, named, code = self.answer(name, damage, command)
        if damage is missing and not command.startswith("run ") and command != "run":
            # a file that was never written is no damage: what it would say is not there
            return
        if code == 0 and (command.startswith("run ") or command == "run" or not named):
            assert answer == self.answers[command], (name, command, named)


@pytest.fixture
def trial(
    base: Base, tmp_path: Path, nablab_here: Nablab, monkeypatch: pytest.MonkeyPatch
) -> Trial:
    monkeypatch.setenv("NABLAB_EXPERIMENTS", str(EXPERIMENTS))
    # a slow disk is not what is tested here
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return Trial(base, tmp_path, nablab_here, {})


def part_of(*words: str) -> bool:
    """Whether a combination belongs to the part that is tried in the ordinary suite."""
    return zlib.crc32(" ".join(words).encode()) % PART == 0


def whole_file(every: bool) -> list[tuple[str, Callable[[Path], None], str]]:
    return [
        (name, damage, command)
        for name in FILES
        for damage in WHOLE
        for command in COMMANDS
        if every or part_of(name, damage.__name__, command)
    ]


def test_a_damaged_file_changes_no_answer_without_a_word(trial: Trial) -> None:
    for name, damage, command in whole_file(every=False):
        trial.check(name, damage, command)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_damage_of_every_file(trial: Trial, name: str) -> None:
    for one, damage, command in whole_file(every=True):
        if one == name:
            trial.check(name, damage, command)


def fields(
    base: Base, one_in: int
) -> Iterator[tuple[str, Callable[[Path], None], str]]:
    for name in JSON_FILES:
        content = json.loads(
            sorted((base.store / base.place).glob(name))[0].read_text()
        )
        for place in places_in(content):
            for words, value in {**WRONG, "missing": NOTHING}.items():
                for seal in (True, False):
                    if is_right(name, place, words):
                        continue
                    damage = functools.partial(
                        with_field, place=place, value=value, seal=seal
                    )
                    for command in COMMANDS:
                        if (
                            zlib.crc32(f"{name}{place}{words}{seal}{command}".encode())
                            % one_in
                            == 0
                        ):
                            yield name, damage, command


def is_right(name: str, place: tuple[str, ...], words: str) -> bool:
    """Whether another value is no damage: a number that another training may have
    given.
    """
    return (
        name.startswith("trials")
        and place[0] == "scalars"
        and words in ("negative", "a fraction")
    )


def test_a_field_that_does_not_fit_changes_no_answer_without_a_word(
    trial: Trial, base: Base
) -> None:
    for name, damage, command in fields(base, FIELDS):
        trial.check(name, damage, command)


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_FILES)
def test_fields_of_every_file(trial: Trial, base: Base, name: str) -> None:
    for one, damage, command in fields(base, FIELDS_SLOW):
        if one == name:
            trial.check(name, damage, command)


# --- what the commands say ----------------------------------------------------


def test_a_damaged_trial_is_named_by_every_command(trial: Trial) -> None:
    left_out, again = "It is left out", "trains it again"
    remedies = {
        "report": left_out,
        "compare": left_out,
        "runs": again,
        "run": "is run again",
    }
    for command, remedy in remedies.items():
        _, said, code = trial.answer("trials/*-s1/trial.json", flipped, command)
        assert code == 0
        assert "-s1/trial.json is damaged: " in said, command
        assert remedy in said, command
    trial.answer("trials/*-s1/trial.json", flipped, "report")
    page = (trial.place / "store" / trial.base.place / "report.html").read_text()
    assert "It is left out; the run&#39;s command trains it again." in page


def test_runs_counts_what_is_whole(trial: Trial) -> None:
    trial.answer("trials/*-s1/arrays.npz", truncated, "runs")
    listed = trial.call("runs", "--store", str(trial.place / "store")).stdout
    assert "8 of 10" in listed  # one was never trained, one is damaged
    assert "arrays.npz is damaged: it has" in listed


def test_a_bad_marker_trains_no_seed_that_is_none(trial: Trial) -> None:
    for seeds in ([-1], [float("inf")], ["x"]):
        damage = functools.partial(
            with_field, place=("seeds",), value=seeds, seal=False
        )
        _, said, code = trial.answer("checkpoints/*.json", damage, "run")
        assert code == 0
        assert "damaged: " in said
        trials = sorted(
            path.name for path in trial.place.glob(f"store/{trial.base.place}/trials/*")
        )
        assert [name.rpartition("-s")[2] for name in trials] == [
            "0",
            "1",
            "2",
            "3",
            "4",
        ] * 2


def test_the_command_of_a_run_names_its_store(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = runs.run("arithmetic", preset="quick", seeds=2, store="other place")
    assert elsewhere.command.endswith("--seeds 2 --store 'other place'")
    assert (
        "--store &#39;other place&#39;"
        in (elsewhere.folder.path / "report.html").read_text()
    )
    usual = runs.run("arithmetic", preset="quick", seeds=2)
    assert "--store" not in usual.command
    shutil.copytree(usual.folder.path, tmp_path / "copy")
    assert runs.open_run(str(tmp_path / "copy")).command == usual.command


def test_outputs_of_report_and_compare(trial: Trial, tmp_path: Path) -> None:
    store = ("--store", str(trial.base.store))
    run = Path(trial.base.place).name
    (tmp_path / "link.html").symlink_to("page.html")
    for words in (("report", run), ("compare", run, trial.base.other)):
        assert trial.call(*words, "-o", "/dev/null", *store).returncode == 0
        assert Path("/dev/null").is_char_device()
        refused = trial.call(*words, "-o", str(tmp_path), *store)
        assert (
            refused.returncode,
            "is a folder. Name a file in it" in refused.stderr,
        ) == (2, True)
        assert (
            trial.call(*words, "-o", str(tmp_path / "link.html"), *store).returncode
            == 0
        )
        assert (tmp_path / "link.html").is_symlink()
        assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("seconds", ["soon", "0", "-3", "nan"])
def test_a_bad_time_between_checkpoints_refuses_the_command(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("NABLAB_CHECKPOINT_SECONDS", seconds)
    done = trial.call(
        "run", "arithmetic", "--preset", "quick", "--store", str(tmp_path / "new")
    )
    assert done.returncode == 2
    assert f"NABLAB_CHECKPOINT_SECONDS is '{seconds}'" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_run_with_an_infinite_setting_can_be_opened(
    trial: Trial, tmp_path: Path
) -> None:
    run = runs.run(
        "arithmetic",
        preset="quick",
        seeds=2,
        noise=float("inf"),
        store=tmp_path / "new",
    )
    again = runs.open_run("arithmetic", tmp_path / "new")
    assert again.experiment == run.experiment
    assert "noise=inf" in again.command
