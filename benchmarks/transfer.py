"""A linear probe on features that are computed once, against the usual loop.

The loop sends every batch through the frozen trunk again in each epoch, in evaluation
mode and without gradients, and trains the last layer by Adam. Both sides have the same
trunk and the same images, as they are before they are enlarged.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.table import Findings, Goal, Table, significant, spread_text
from benchmarks.timing import Spread, take_turns
from nablab import baselines, data, models
from nablab.files.weights import set_trunk_weights

OURS, EXACT, LOOP = "nablab", "nablab, float32", "recomputed every epoch"
TRUNK = "efficientnet-lite0"
EPOCHS, BATCH, RATE, PENALTY = 10, 64, 3e-3, 0.03
TEST = 500  # images that are scored, outside of the clock


def measure(
    spec: str = "cifar10@2000",
    *,
    pixels: int = 64,
    pretrained: bool = True,
    repeats: int,
) -> Findings:
    """Time a probe on each side, in turns.

    Args:
        spec: Labeled images.
        pixels: Height and width to which they are enlarged.
        pretrained: Whether the trunk has its published weights, or random ones.
        repeats: Turns.
    """
    task = data.image_task(spec, size=32, channels=3)
    images, labels = task.train()
    shown, truth = (part[:TEST] for part in task.held_out())
    net = trunk(task.outputs, pretrained=pretrained)
    prepare = data.Resize(pixels, data.Normalize(tuple(net.mean), tuple(net.std)))
    scores: dict[str, float] = {}

    def cached(bfloat16: bool) -> float:
        name = OURS if bfloat16 else EXACT
        begun = time.perf_counter()
        features = models.CachedFeatures(net, images, prepare, bfloat16=bfloat16)
        probe = baselines.linear_probe(
            features(), labels, classes=task.outputs, penalties=[PENALTY]
        )
        seconds = time.perf_counter() - begun
        test = models.CachedFeatures(net, shown, prepare, bfloat16=bfloat16)
        scores[name] = probe.accuracy(test(), truth)
        return seconds

    def recomputed() -> float:
        begun = time.perf_counter()
        head = by_the_loop(net, prepare, images, labels, classes=task.outputs)
        seconds = time.perf_counter() - begun
        with torch.no_grad():
            answers = head(net.features(prepare(shown))).argmax(1)
        scores[LOOP] = float((answers == truth).double().mean())
        return seconds

    sides: dict[str, Callable[[], float]] = {
        OURS: lambda: cached(bfloat16=True),
        EXACT: lambda: cached(bfloat16=False),
        LOOP: recomputed,
    }
    seconds = take_turns(sides, repeats)
    pairs = {
        name: Spread.of([b / a for a, b in zip(values, seconds[LOOP], strict=True)])
        for name, values in seconds.items()
    }
    rows = [
        (
            name,
            spread_text(Spread.of(values), " s"),
            spread_text(pairs[name], "x"),
            f"{100 * scores[name]:.1f} %",
        )
        for name, values in seconds.items()
    ]
    weights = "weights of ImageNet" if pretrained else "random weights"
    notes = [
        f"{len(images):,} images of {spec} at {pixels} x {pixels} pixels, {TRUNK} with "
        f"{weights}; the loop takes {EPOCHS} epochs in batches of {BATCH}, nablab solves "
        f"for the optimum (penalty {PENALTY:g}) on features in bfloat16 where not said "
        f"otherwise. Accuracy on {len(shown)} test images, not in the time. "
        f"{torch.get_num_threads()} threads, {repeats} turns."
    ]
    header = ("side", "time", "faster than the loop", "test accuracy")
    table = Table("A linear probe", header, rows, notes)
    found = f"{significant(pairs[OURS].median)}x; {significant(pairs[EXACT].median)}x "
    goal = Goal("a linear probe, features cached", f"{found}in float32", "5x", "9x")
    return Findings([table], [goal])


def trunk(classes: int, *, pretrained: bool) -> models.EfficientNetLite0:
    """Build the network in evaluation mode, without dropout."""
    net = models.efficientnet_lite0(classes, dropout=0.0)
    if pretrained:
        found = data.load_pretrained(TRUNK)
        set_trunk_weights(net, found.tensors, found.name, head=models.head_of(net))
    return net.eval().requires_grad_(False)


def by_the_loop(
    net: models.EfficientNetLite0,
    prepare: data.Resize,
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
) -> nn.Linear:
    """Train a last layer as notebooks do."""
    width = int(net.get_submodule(models.head_of(net)).in_features)  # type: ignore[arg-type]
    head = nn.Linear(width, classes)
    optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(images)).split(BATCH):
            with torch.no_grad():
                features = net.features(prepare(images[part]))
            loss = functional.cross_entropy(head(features), labels[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return head
