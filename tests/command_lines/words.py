"""Command lines, valid and broken: real names, keys, presets and values, and what
people type instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from nablab import catalogue, instruments
from nablab.contract import Experiment, configuration
from nablab.data.known import EMBEDDED, KNOWN

INSTRUMENTS = instruments.INSTRUMENTS
# Small enough that a dry run takes a second or two: the rest of a preset is multiplied,
# not measured.
SMALL = {
    "autoencoder-vs-svd": "data=digits@60 size=4 codes=2 hidden=5 filters=2 epochs=1 "
    "linear_epochs=1 batch_size=20 solver_steps=3",
    "cifar-cnn": "data=digits@60 size=4 channels=1 filters=2 kernels=3 layers=1 "
    "activations=relu pools=max epochs=1 batch_sizes=20 learning_rates=0.01 deep=conv2k3p1 "
    "networks=deep validation=20",
    "cnn-depth": "data=digits@100 networks=conv2k3 epochs=1 batch_size=50 validation=0",
    "deep-vs-shallow": "targets=sinc trio=none networks=1-3-1 steps=50",
    "denoising-autoencoder": "data=digits@60 size=4 code=2 noises=0.2 hidden=5 "
    "filters=2 epochs=1 batch_size=20",
    "gradient-norm": "targets=sinc networks=1-3-1 steps=20 measurements=2",
    "grid-search": "data=king-james samples=60 fresh=50 words=30 widths=2,3 "
    "learning_rates=0.01 weight_decays=0 epochs=1 folds=3 batch_size=10",
    "interpolation": "data=digits@60 networks=flatten-3 ends=order epochs=1 "
    "batch_size=20 large_batch=60 alphas=3 train_samples=20",
    "loss-landscape": "targets=sinc networks=shallow steps=20 resolution=5 alphas=5 "
    "path_points=3 subset=20",
    "numpy-digits": "data=digits@60 networks=dense size=8 hidden_units=3 epochs=1 "
    "batch_size=20 evaluations=1",
    "parameters-vs-generalization": "data=digits@60 hidden=3 epochs=1 batch_size=20 "
    "ratios= noise=0 samples=20 descent_epochs=1",
    "perceptron": "points=20 hidden_units=2 epochs=20",
    "random-labels": "data=digits@60 networks=flatten-3 shares=0 epochs=1 "
    "batch_size=20",
    "regularization": "data=king-james@300 validation=100 words=50 hidden=3 kinds=L2 "
    "penalties=0.001 batch_size=50 epochs=1",
    "sensitivity": "data=digits@60 network=flatten-3 batch_sizes=20,40 epochs=1 "
    "steps=2 batch_size=20 most_steps=4 inputs=5",
    "sentiment": "data=king-james@100 networks=cnn changes= words=50 limit=5 "
    "embedding=2 filters=2 batch_size=20 epochs=1",
    "sharpness": "data=digits@60 network=flatten-3 batch_sizes=20,30 "
    "learning_rates=0.01 epochs=1 measured=10",
    "transfer-learning": "data=digits@200 classes=5,6 trunk=small channels=1 widths=3 "
    "pixels=8 images=2 methods=linear-probe,everything steps=5 batch_size=4 "
    "source_epochs=1 validation=10 test_images=20",
    "vae": "data=digits@60 size=4 hidden=5 decoder= betas=1 mean_betas=1 epochs=1 "
    "batch_size=20 linear_steps=3 draws=2 scored=5",
    "weight-trajectories": "target=sinc network=1-3-3-1 layer=1 steps=20 points=2",
    "word-analogies": "vectors= texts=king-james@300 sets=family dimensions=2 "
    "min_count=2 queries=king",
    "zero-gradient": "networks=1-2-1 targets=sinc@20 weight_decays=0 steps=20 "
    "iterations=2",
    "toy": "steps=20",
}
HUGE = (
    "1e12",
    "9223372036854775807",
    "9223372036854775808",
    "1e20",
    "1e999999999",
    "-1e30",
    "1" * 400,
)
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "0.5",
    "1e-9",
    "1e308",
    "nan",
    "inf",
    "-inf",
    "1,2",
    "1_000",
    *HUGE,
)
PLACES = (
    ".", "/", "/root", "/proc/self/mem", "/dev/null", "~nobody/x", "no/such/place",
    "data.npz", "cut.npz", "text.npz", "weights.safetensors", "old.pth", "closed",
    "closed/net.py", "net.py", "pictures", "é∇.npz",
)  # fmt: skip
TEXTS = (
    "", " ", "=", "==", "a=b=c", "-", "--", "∇", "日本", "\udcff", "a" * 5_000,
    "x" * 300 + "/" + "y" * 300, "[bold]", "%s", "{0}", "$HOME", "\n", "\x1b[31m",
    "none", "true", "()", "((", "1-", "1x2", "None",
)  # fmt: skip
MODELS = (
    "net.py:build", "net.py:wide", "net.py:leaves", "net.py:raises", "net.py:text",
    "net.py:nothing", "net.py", "net.py:", ":build", "net:build", "broken.py:build",
    "leaves.py:build", "no_such_module:build", "closed/net.py:build", "math:sqrt",
    "os.path:join",
)  # fmt: skip
DATA = (
    "sinc", "sign_sin", "sincc", "x**2", "x/0", "digits@20", "digits:test@20",
    "digits@0", "digits@1e9", "digits:", "@", ":", "data.npz", "columns.npz",
    "from_one.npz", "text.npz", "cut.npz", "pictures", "x**2@-1..1@10",
    "x@0..1@1000000000000", "9**9**9**9", "sawtooth-99", "mnist",
    "king-james", "king-james@20", "king-james@9999", "imdb", "ag-news@10",
    "reviews.csv", "reviews.csv:text,label", "reviews.csv:none,label", "letters",
    "letters@2", "torn.csv", "one.csv", "verses.tsv:1,2",
)  # fmt: skip

odd = st.sampled_from([*NUMBERS, *TEXTS, *PLACES]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
)


def mostly(
    usual: st.SearchStrategy[str], other: st.SearchStrategy[str] = odd
) -> st.SearchStrategy[str]:
    """What is meant, most of the time."""
    return st.integers(0, 5).flatmap(lambda chance: other if chance == 0 else usual)


def entries() -> dict[str, type[Experiment]]:
    """The experiments by name."""
    return {
        name: entry.experiment
        for name, entry in catalogue.scan().items()
        if entry.experiment
    }


def values_of(field: configuration.FieldDoc) -> st.SearchStrategy[str]:
    """Texts for a field: its default, its choices, numbers where it takes some, and odd
    ones.
    """
    near = [field.default, *field.choices]
    near += ["1", "2", "3", "0.1"] if "number" in field.type else []
    near += list(DATA) if field.name in ("data", "target", "targets") else []
    near += list(MODELS) if field.name == "model" else []
    near += NETWORKS if field.name.startswith("network") else []
    return mostly(st.sampled_from(near)) | st.sampled_from(NUMBERS)


NETWORKS = [
    "lenet", "1-9-1", "1-100000-100000-1", "1-1x999-1", "conv8k3p999", "conv100000k1",
    "flatten-3", "784-10", "conv3k3-bn", "bn", "pool", "flatten-99999x9", "lenet,lenet",
    "deep", "1-0-1", "conv1k1s999", "conv2k3x99",
]  # fmt: skip


@st.composite
def settings_of(
    draw: st.DrawFn, experiment: type[Experiment], *, small: bool = True
) -> list[str]:
    """``key=value`` words: what makes the experiment small, and up to three others."""
    fields = [
        field for field in configuration.describe(experiment) if "." not in field.name
    ]
    found = (
        dict(word.split("=", 1) for word in SMALL[experiment.name].split())
        if small
        else {}
    )
    for field in draw(st.lists(st.sampled_from(fields), max_size=3)):
        found[field.name] = draw(values_of(field))
    if draw(st.integers(0, 9)) == 0:
        found[draw(odd)] = draw(odd)
    return [f"{key}={value}" for key, value in found.items()]


def _option(name: str, values: Iterable[str] | None) -> st.SearchStrategy[list[str]]:
    if values is None:
        return st.just([name])
    return mostly(st.sampled_from(list(values))).map(lambda value: [name, value])


def options(*known: tuple[str, Iterable[str] | None]) -> st.SearchStrategy[list[str]]:
    """Some of the options; of those with a value, a usual or an odd one."""
    one = [_option(name, values) for name, values in known]
    unknown = st.sampled_from(["--bogus", "--help", "-x", "--json=3", "--seeds"]).map(
        lambda word: [word]
    )
    chosen = st.lists(st.one_of(*one, unknown), max_size=4)
    return chosen.map(lambda groups: [word for group in groups for word in group])


@st.composite
def run_lines(draw: st.DrawFn) -> list[str]:
    """``nablab run``: only the toy is trained, all others are dry runs."""
    known = entries()
    name = draw(mostly(st.sampled_from(sorted(known))))
    words = ["run", name]
    words += draw(settings_of(known[name])) if name in known else [draw(odd)]
    presets = sorted(known[name].presets) if name in known else ["quick"]
    words += draw(
        options(
            ("--preset", presets),
            ("--seeds", ["1", "2", "0", "-3", "1000000000"]),
            ("--device", ["cpu", "cuda", "mps"]),
            ("--replicas", ["auto", "batched", "sequential"]),
            ("--model", MODELS),
            ("--store", ["runs", "net.py", "closed", "/proc"]),
            ("--fresh", None),
            ("--quiet", None),
            ("--json", None),
        )
    )
    words += ["--seeds", "1"] if "--seeds" not in words else []
    return words if name == "toy" else [*words, "--dry-run"]


@st.composite
def measure_lines(draw: st.DrawFn) -> list[str]:
    """``nablab measure`` on small networks and data."""
    from nablab.cli import measuring

    name = draw(mostly(st.sampled_from(INSTRUMENTS)))
    words = ["measure", name]
    if name in INSTRUMENTS:
        facts: Sequence[Any] = measuring.option_facts(name)["options"]
        for option in draw(st.lists(st.sampled_from(facts), max_size=2)):
            small = st.sampled_from(
                [option["default"], "1", "2", "0", "-1", "0.5", "nan", "all", "true"]
            )
            words.append(f"{option['name']}={draw(mostly(small))}")
    words += draw(
        options(
            ("--model", MODELS),
            ("--data", DATA),
            (
                "--loss",
                [
                    "mse",
                    "cross_entropy",
                    "l1",
                    "nll",
                    "binary_cross_entropy",
                    "net.py:loss",
                    "mes",
                ],
            ),
            (
                "--weights",
                ["weights.safetensors", "old.pth", "int8.safetensors", "net.py"],
            ),
            ("--device", ["cpu", "cuda"]),
            ("--figure", ["a.png", "b.svg", "a.gif", "closed/a.png", "runs/c.pdf"]),
            ("--cost", None),
            ("--json", None),
        )
    )
    if draw(st.booleans()):
        words += ["--model", "net.py:build", "--data", "data.npz"]
    return words


def command_lines() -> st.SearchStrategy[list[str]]:
    """Any command."""
    names = mostly(st.sampled_from(sorted(entries())))
    runs = mostly(st.sampled_from(["toy", "a", "", "runs/toy", *sorted(entries())]))
    places = ("--store", ["runs", "net.py", "closed", "no/where"])
    page = ("-o", ["page.html", "closed/page.html", "/proc/x", "."])
    simple = st.one_of(
        options(("--json", None)).map(lambda more: ["list", *more]),
        st.tuples(names, options(("--json", None))).map(
            lambda pair: ["show", pair[0], *pair[1]]
        ),
        options(("--json", None), places).map(lambda more: ["runs", *more]),
        st.tuples(st.lists(runs, max_size=2), options(places, page)).map(
            lambda p: ["report", *p[0], *p[1]]
        ),
        st.tuples(st.lists(runs, max_size=3), options(places, page)).map(
            lambda p: ["compare", *p[0], *p[1]]
        ),
        options(("--json", None)).map(lambda more: ["data", "list", *more]),
        mostly(st.sampled_from([*KNOWN, *EMBEDDED])).map(
            lambda name: ["data", "get", name]
        ),
        st.lists(odd, max_size=4),
    )
    return st.one_of(run_lines(), run_lines(), measure_lines(), measure_lines(), simple)
