"""Bring your own network: real files, real packages, and each mistake answered by one
message.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from nablab import models
from nablab.errors import UsageError

GOOD = """
    import torch
    from torch import nn

    def network():
        return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def broken():
        return nn.Linear(1, 4, nowhere=True)

    def text():
        return "a network"

    def the_class():
        return nn.Linear

    def empty():
        return nn.ReLU()

    frozen = lambda: nn.Linear(1, 1).requires_grad_(False)
    widths = (1, 4, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 2)
            self.drop = nn.Dropout()

        def forward(self, x):
            if x.shape[0] == 7:
                raise RuntimeError("seven is too many")
            return self.drop(self.inner(x)) if x.shape[0] != 8 else (x, x)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(textwrap.dedent(GOOD))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(text))


def test_a_file_gives_fresh_networks_from_the_global_generator(folder: Path) -> None:
    build = models.load_factory("mine.py:network")
    torch.manual_seed(1)
    first, second = build(), build()
    torch.manual_seed(1)
    again = models.load_factory(f"{folder}/mine.py:network")()
    assert not torch.equal(first[0].weight, second[0].weight)  # type: ignore[index]
    assert torch.equal(first[0].weight, again[0].weight)  # type: ignore[index]
    models.check_output(first, torch.zeros(5, 1), (5, 1))


def test_a_class_is_a_factory(folder: Path) -> None:
    assert models.load_factory("mine.py:Net")().drop.p == 0.5


def test_a_file_may_import_its_neighbor_and_define_dataclasses(folder: Path) -> None:
    write(folder, "sub/neighbor_of_net.py", "WIDTH = 3")
    write(
        folder,
        "sub/net.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from torch import nn
        from neighbor_of_net import WIDTH

        @dataclass
        class Options:
            width: int = WIDTH

        def network():
            return nn.Linear(1, Options().width)
        """,
    )
    assert models.load_factory("sub/net.py:network")().out_features == 3


def test_a_package_in_the_current_folder_and_an_installed_one(folder: Path) -> None:
    write(folder, "package_of_mine/__init__.py", "")
    write(
        folder,
        "package_of_mine/nets.py",
        "from torch import nn\ndef net(): return nn.Linear(1, 1)",
    )
    assert models.load_factory("package_of_mine.nets:net")().in_features == 1
    with pytest.raises(UsageError, match=r"no module 'package_of_mine\.nots'"):
        models.load_factory("package_of_mine.nots:net")
    # Linear needs its sizes
    with pytest.raises(UsageError, match="required positional arg"):
        models.load_factory("torch.nn:Linear")()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "mine.py",
            r"'mine.py' does not name a factory. Write package.module:factory or path",
        ),
        ("mine.py:", r"does not name a factory"),
        (":network", r"does not name a factory"),
        ("mine.py:a b", r"does not name a factory"),
        (
            "nothing.py:network",
            r"There is no file 'nothing.py' \(from 'nothing.py:network', looked for in",
        ),
        ("no_such_package.nets:net", r"There is no module 'no_such_package'"),
        ("mine.py:netwrok", r"no name in mine.py 'netwrok'. Did you mean 'network'\?"),
        ("mine.py:widths", r"'widths' in mine.py is a tuple, not a function"),
    ],
)
def test_a_wrong_path_is_answered_before_anything_runs(
    folder: Path, spec: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        models.load_factory(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "broken",
            r"Calling mine.py:broken\(\) raised TypeError: .*nowhere.*mine.py, line 9\)",
        ),
        ("text", r"returned an object of type str; it must return a torch.nn.Module"),
        ("the_class", r"returned the class itself, not an instance"),
        ("empty", r"without trainable parameters"),
        ("frozen", r"without trainable parameters"),
    ],
)
def test_what_the_factory_returns_is_checked(
    folder: Path, name: str, message: str
) -> None:
    build = models.load_factory(f"mine.py:{name}")
    with pytest.raises(UsageError, match=message):
        build()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1 / 0",
            r"raised ZeroDivisionError: division by zero \(.*bad.py, line 1\)",
        ),
        ("def f(:", r"raised SyntaxError"),
        (
            "import no_such_thing",
            r"raised ModuleNotFoundError: No module named 'no_such_thing'",
        ),
    ],
)
def test_a_file_that_fails_to_load_says_where(
    folder: Path, text: str, message: str
) -> None:
    write(folder, "bad.py", text)
    package = f"bad_package_{len(text)}"  # Python keeps what it imported once
    write(folder, f"{package}/__init__.py", "")
    write(folder, f"{package}/bad.py", text)
    with pytest.raises(UsageError, match="Loading .*bad.py " + message):
        models.load_factory("bad.py:network")
    with pytest.raises(UsageError, match=f"Importing {package}.bad {message}"):
        models.load_factory(f"{package}.bad:network")


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        (
            5,
            (5, 1),
            r"turns an input of shape \(5, 1\) into \(5, 2\); it must return \(5, 1\)",
        ),
        (
            7,
            (7, 2),
            r"fails on an input of shape \(7, 1\): RuntimeError: seven is too many",
        ),
        (8, (8, 2), r"returns a tuple; it must return one tensor of shape \(8, 2\)"),
    ],
)
def test_the_output_is_checked(
    folder: Path, rows: int, shape: tuple[int, ...], message: str
) -> None:
    module = models.load_factory("mine.py:Net")()
    with pytest.raises(UsageError, match=message):
        models.check_output(module, torch.zeros(rows, 1), shape)
    assert module.training


def test_checking_the_output_leaves_the_random_generator_and_the_mode(
    folder: Path,
) -> None:
    module = models.load_factory("mine.py:Net")()
    before = torch.get_rng_state()
    models.check_output(module, torch.zeros(5, 1), (5, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert module.drop.training


def test_the_hash_of_the_source_changes_with_the_file(folder: Path) -> None:
    before = models.source_hash("mine.py:network")
    assert before == models.source_hash("mine:network")
    (folder / "mine.py").write_text("# changed\n")
    assert models.source_hash("mine.py:network") != before
    with pytest.raises(UsageError, match="There is no file"):
        models.source_hash("other.py:network")
    with pytest.raises(UsageError, match="There is no module 'other_module'"):
        models.source_hash("other_module:network")
    assert models.source_hash("sys:exit") == ""


NET = """
    from torch import nn
    from width_of_net import WIDTH

    def network():
        return nn.Linear(1, WIDTH)
"""


@pytest.mark.parametrize("spec", ["nb/net.py:network", "nets_of_mine.net:network"])
def test_the_hash_changes_with_what_the_file_imports(
    folder: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(folder, "nb/net.py", NET)
    write(folder, "nb/width_of_net.py", "WIDTH = 3")
    write(
        folder,
        "nets_of_mine/net.py",
        NET.replace("from width_of_net", "from .parts.width"),
    )
    write(folder, "nets_of_mine/__init__.py", "")
    write(folder, "nets_of_mine/parts/__init__.py", "")
    write(folder, "nets_of_mine/parts/width.py", "WIDTH = 3")
    before = models.source_hash(spec)
    assert models.load_factory(spec)().out_features == 3
    for place in ("nb/width_of_net.py", "nets_of_mine/parts/width.py"):
        write(folder, place, "WIDTH = 5")  # of the same size, within the same second
    assert models.source_hash(spec) != before
    # the hash is that of what runs
    assert models.load_factory(spec)().out_features == 5


IMPORTS = {
    "inside a function": "def network():\n"
    "    from torch import nn\n"
    "    import deep_part\n",
    "by a text": "import importlib\npart = importlib.import_module('deep_part')\n",
    "over two files": "import part_between\n",
    "from a package": "from package_beside import deep\n",
    "data by a path": "from pathlib import Path\n"
    "(Path(__file__).parent / 'data' / 'w.txt').read_text()\n",
    "data by a name": "WEIGHTS = 'nb/data/w.txt'\n",
    "data of a part": "import part_with_data\n",
    "a script": "exec(open('nb/deep_part.py').read())\n",
}


@pytest.mark.parametrize("way", IMPORTS)
def test_every_way_to_another_file_is_followed(folder: Path, way: str) -> None:
    write(folder, "nb/net.py", IMPORTS[way])
    write(folder, "nb/part_between.py", "if True:\n    from deep_part import X as Y")
    write(folder, "nb/package_beside/__init__.py", "")
    write(folder, "nb/part_with_data.py", "open('data/w.txt')")

    def change(text: str) -> str:
        for place in ("deep_part.py", "package_beside/deep.py", "data/w.txt"):
            write(folder, f"nb/{place}", text)
        return models.source_hash("nb/net.py:network")

    first = change("X = 1")
    assert change("X = 2") != first
    assert change("X = 1") == first
    write(folder, "nb/unrelated.py", "X = 3")
    assert models.source_hash("nb/net.py:network") == first


def test_a_file_that_stands_alone_keeps_the_hash_of_its_bytes(folder: Path) -> None:
    import hashlib

    content = (folder / "mine.py").read_bytes()
    assert models.source_hash("mine.py:network") == hashlib.sha256(content).hexdigest()
    (folder / "losses.csv").write_text("1")
    write(
        folder,
        "writes.py",
        "open('losses.csv', 'a').write('2')\nopen('losses.csv', mode='w')\n",
    )
    before = models.source_hash("writes.py:network")
    # what the code writes is a result, not a source
    (folder / "losses.csv").write_text("1, 2")
    assert models.source_hash("writes.py:network") == before


def test_the_hash_does_not_depend_on_where_the_folder_lies(folder: Path) -> None:
    for place in ("here", "elsewhere/there"):
        write(folder, f"{place}/net.py", NET)
        write(folder, f"{place}/width_of_net.py", "WIDTH = 3")
    hashes = {
        models.source_hash(f"{place}/net.py:network")
        for place in ("here", "elsewhere/there")
    }
    assert len(hashes) == 1


def test_equal_names_in_two_folders_are_two_modules(folder: Path) -> None:
    for number, place in enumerate(("first", "second")):
        write(folder, f"{place}/net.py", NET)
        write(folder, f"{place}/width_of_net.py", f"WIDTH = {number + 1}")
    widths = [
        models.load_factory(f"{place}/net.py:network")().out_features
        for place in ("first", "second")
    ]
    assert widths == [1, 2]
    assert models.load_factory("first/net.py:network")().out_features == 1


def test_an_import_inside_the_factory_finds_its_neighbor(folder: Path) -> None:
    text = (
        "from torch import nn\n"
        "def network():\n"
        "    from late_neighbor import N\n"
        "    return nn.Linear(1, N)\n"
    )
    write(folder, "nb/late.py", text)
    write(folder, "nb/late_neighbor.py", "N = 6")
    assert models.load_factory("nb/late.py:network")().out_features == 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import os\nn = os.environ['WIDTH']", "line 2, reads an environment variable"),
        (
            "def f(name):\n    import importlib\n    importlib.import_module(name)",
            "line 3, imports a module",
        ),
        (
            "import torch\ndef f(path): return torch.load(path)",
            "line 2, reads a file whose name is made",
        ),
        ("def f(text): exec(text)", "line 1, runs code that is made while it runs"),
        ("from width_of_net import WIDTH", ""),
    ],
)
def test_what_cannot_be_seen_is_said(folder: Path, line: str, said: str) -> None:
    write(folder, "net.py", line)
    write(folder, "width_of_net.py", "WIDTH = 3")
    found = models.unseen("net.py:network")
    assert len(found) == bool(said)
    assert said in "".join(found)
