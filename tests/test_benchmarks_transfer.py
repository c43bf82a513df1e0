"""The benchmark of a linear probe: the same trunk and images on both sides."""

from __future__ import annotations

import torch

from benchmarks import transfer
from nablab import data, models


def test_the_table_names_all_sides() -> None:
    findings = transfer.measure("digits@40", pixels=32, pretrained=False, repeats=1)
    (table,), (goal,) = findings.tables, findings.goals
    assert [row[0] for row in table.rows] == [
        transfer.OURS,
        transfer.EXACT,
        transfer.LOOP,
    ]
    assert table.rows[-1][2].startswith("1x")
    assert goal.measured.endswith("in float32")


def test_the_loop_trains_the_last_layer_alone() -> None:
    net = transfer.trunk(10, pretrained=False)
    before = {name: part.clone() for name, part in net.state_dict().items()}
    task = data.image_task("digits@20", size=32, channels=3)
    images, labels = task.train()
    prepare = data.Resize(32, data.Normalize((0.5,) * 3, (0.25,) * 3))
    with torch.no_grad():
        features = net.features(prepare(images))
    assert features.shape == (20, 1280)
    torch.manual_seed(0)
    head = transfer.by_the_loop(net, prepare, images, labels, classes=10)
    assert (head.in_features, head.out_features) == (1280, 10)
    after = net.state_dict()
    assert all(torch.equal(part, after[name]) for name, part in before.items())
    loss = torch.nn.functional.cross_entropy(head(features), labels)
    assert float(loss.detach()) < 2.3  # what guessing costs
    assert models.head_of(net) == "_fc"
