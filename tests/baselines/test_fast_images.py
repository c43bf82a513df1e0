"""The fast recipe learns, and its scores are those of the network that it trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nablab import baselines, data, metrics, training

SMALL = dataclasses.replace(
    baselines.BUDGETS[80], widths=(8, 16), epochs=4, batch_size=50
)


@pytest.fixture(scope="module")
def train() -> data.ImageSet:
    return data.image_task("digits@300", size=32, channels=3).images()


def test_an_epoch_takes_each_image_or_its_mirror_image(train: data.ImageSet) -> None:
    images, labels = SMALL.samples(train)
    sampler = SMALL.recipe(train).sampler
    assert sampler is not None
    assert len(images) == len(labels) == 2 * len(train)
    assert torch.equal(images[len(train) + 7], train.images[7].flip(2))
    epoch = torch.cat(
        [sampler.indices(0, step) for step in range(sampler.batches_per_epoch)]
    )
    assert torch.equal(labels[epoch].bincount(), train.labels.bincount())


def test_it_learns_digits_in_four_epochs(train: data.ImageSet) -> None:
    test = data.image_task("digits@400", size=32, channels=3).images("test")
    test = test.first(80)
    notes: list[str] = []
    result = training.train(
        SMALL.learner(train),
        SMALL.samples(train),
        SMALL.recipe(train, held_out={"test": (test.images, test.labels)}),
        seeds=[0],
        on_note=notes.append,
    )
    network = result[0].module()
    assert isinstance(network, torch.nn.Module)
    scores = baselines.accuracies(network, train.normalize, test.images, test.labels)
    assert scores["plain"] == pytest.approx(result.evaluations["test_accuracy"][0, -1])
    assert scores["plain"] > 0.4  # chance is a tenth, and mirrored digits mislead
    ready = train.normalize(test.images)
    answers = metrics.mean_over_views(network, ready).argmax(1)
    share = (answers == test.labels).double().mean().item()
    assert scores["averaged"] == pytest.approx(share, abs=0.02)  # rounded differently


def test_precision_is_that_of_the_processor() -> None:
    there = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert training.convolution_precision() == ("bfloat16" if there else "float32")
