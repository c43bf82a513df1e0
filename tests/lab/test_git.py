"""The commit is read without running what the folder's own configuration names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nablab.lab.git import git_state

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Runs git in a repository with two committed files."""
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GIT_")
        },
        **dict.fromkeys(("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"), "/dev/null"),
    }

    def call(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path))
        command = ["git", *identity, *words]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout

    call("init", "--quiet")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "link").symlink_to("a.txt")
    call("add", ".")
    call("commit", "--quiet", "-m", "first")
    return call


def test_the_commit_and_whether_files_differ(git: Git, tmp_path: Path) -> None:
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    assert git_state(tmp_path) == commit
    (tmp_path / "new.txt").write_text("not tracked")
    (tmp_path / "a.txt").touch()
    os.utime(tmp_path / "b.txt", (1, 1))
    assert git_state(tmp_path) == commit  # another time, the same content
    inside = tmp_path / "folder"
    inside.mkdir()
    (tmp_path / "a.txt").write_text("b.txt\n")  # as long as before
    assert git_state(inside) == f"{commit} +changes"


@pytest.mark.parametrize(
    "change", ["longer", "removed", "staged", "link", "file", "fifo"]
)
def test_every_kind_of_change_is_seen(git: Git, tmp_path: Path, change: str) -> None:
    file = tmp_path / "a.txt"
    match change:
        case "longer":
            file.write_text("more than before\n")
        case "removed":
            file.unlink()
        case "staged":
            (tmp_path / "c.txt").write_text("new")
            git("add", "c.txt")
        case "file":
            (tmp_path / "link").unlink()
            # the same content, but no link any more
            (tmp_path / "link").write_text("a.txt")
        case "link":
            (tmp_path / "link").unlink()
            (tmp_path / "link").symlink_to("b.txt")
        case "fifo":
            file.unlink()
            os.mkfifo(file)
    assert git_state(tmp_path).endswith(" +changes")


def test_no_repository_and_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) == ""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert git_state(tmp_path) == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"core.fsmonitor": "{trap}"},
        {"core.hooksPath": "{folder}/hooks"},
        {
            "filter.f.clean": "{trap}",
            "filter.f.process": "{trap}",
            "filter.f.smudge": "{trap}",
        },
        {
            "diff.external": "{trap}",
            "diff.f.command": "{trap}",
            "diff.f.textconv": "{trap}",
        },
        {"core.pager": "{trap}", "pager.diff-index": "{trap}", "core.editor": "{trap}"},
        {"alias.diff-index": "!{trap}", "alias.rev-parse": "!{trap}"},
        {
            "core.repositoryformatversion": "1",
            "extensions.partialClone": "origin",
            "remote.origin.promisor": "true",
            "remote.origin.url": "ssh://nowhere/x",
            "core.sshCommand": "{trap}",
            "core.gitProxy": "{trap}",
        },
        {
            "core.repositoryformatversion": "1",
            "extensions.partialClone": "origin",
            "remote.origin.promisor": "true",
            "remote.origin.url": "ext::{trap}",
            "protocol.ext.allow": "always",
        },
    ],
    ids=["monitor", "hooks", "filter", "diff", "pager", "alias", "ssh", "ext"],
)
def test_a_hostile_repository_runs_nothing(
    git: Git, tmp_path: Path, settings: dict[str, str]
) -> None:
    sprung = tmp_path / "sprung"
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\necho run >> {sprung}\ncat\n")
    trap.chmod(0o755)
    hooks = [tmp_path / "hooks", tmp_path / ".git" / "hooks"]
    for folder in hooks:
        folder.mkdir(exist_ok=True)
        for name in (
            "post-index-change",
            "post-checkout",
            "fsmonitor-watchman",
            "reference-transaction",
        ):
            (folder / name).write_text(trap.read_text())
            (folder / name).chmod(0o755)
    (tmp_path / ".gitattributes").write_text("* filter=f diff=f\n")
    for key, value in settings.items():
        git("config", key, value.format(trap=trap, folder=tmp_path))
    # the tree of the commit is to be fetched when it is needed
    if "remote.origin.promisor" in settings:
        tree = git("rev-parse", "HEAD^{tree}").strip()
        (tmp_path / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    sprung.unlink(missing_ok=True)  # setting the trap may have run it
    (tmp_path / "a.txt").write_text("b.txt\n")
    os.utime(tmp_path / "b.txt", (1, 1))
    state = git_state(tmp_path)
    assert not sprung.exists()
    known = "remote.origin.promisor" not in settings
    assert state.endswith(
        " +changes" if known else "(whether files differ is not known)"
    )


def test_variables_of_the_caller_do_not_point_git_elsewhere(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    assert git_state(tmp_path) == git("rev-parse", "--short=12", "HEAD").strip()
