"""How images are trained on elsewhere: the notebook's loop, Lightning, Keras on JAX."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.image_cases import CLASSES, Images
from benchmarks.peers import Absent


class PerSample(Dataset[tuple[Tensor, int]]):
    """What torchvision's MNIST and CIFAR10 do for each sample, written out.

    It is that with ``ToTensor`` and ``Normalize``: a PIL image is made of the bytes, a
    float tensor of the image, and mean and deviation are applied.
    """

    def __init__(
        self, pair: tuple[Tensor, Tensor], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        images, self._labels = pair
        # Gray images as (H, W), color images as (H, W, 3).
        last = images.permute(0, 2, 3, 1).contiguous()
        self._images = last[..., 0] if images.shape[1] == 1 else last
        self._mean, self._std = mean, std

    @classmethod
    def of(cls, images: Images, *, split: str = "train") -> PerSample:
        """Return those of a split."""
        pair = images.train if split == "train" else images.test
        return cls(pair, images.prepare.mean, images.prepare.std)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._images[index].numpy())
        ready = normalize(to_tensor(image), self._mean, self._std)
        return ready, int(self._labels[index])


def to_tensor(image: Image.Image) -> Tensor:
    """Make a PIL image float32 (C, H, W) from 0 to 1, as torchvision does."""
    array = np.array(image, dtype=np.uint8, copy=True)
    channels = len(image.getbands())
    tensor = torch.from_numpy(array).view(image.size[1], image.size[0], channels)
    return tensor.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def normalize(tensor: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bring a tensor to mean 0 and deviation 1, as torchvision's ``Normalize``."""
    center = torch.as_tensor(mean, dtype=tensor.dtype).view(-1, 1, 1)
    width = torch.as_tensor(std, dtype=tensor.dtype).view(-1, 1, 1)
    return tensor.clone().sub_(center).div_(width)


def notebook_epoch(
    build: Callable[[], nn.Module], images: Images, batch_size: int
) -> nn.Module:
    """Train one epoch of the usual loop.

    It has a DataLoader, a per-sample transform, float32, and Adam as it comes.
    """
    model = build()
    loader = DataLoader(PerSample.of(images), batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def notebook_evaluation(
    model: nn.Module, images: Images, batch_size: int, *, split: str = "test"
) -> tuple[float, float]:
    """Compute loss and accuracy on a split by a loop over a DataLoader."""
    model.eval()
    loss, right, samples = 0.0, 0, 0
    samples_of = PerSample.of(images, split=split)
    for x, y in DataLoader(samples_of, batch_size=batch_size):
        output = model(x)
        loss += functional.cross_entropy(output, y, reduction="sum").item()
        right += (output.argmax(1) == y).sum().item()
        samples += len(y)
    return loss / samples, right / samples


def lightning_epoch(
    build: Callable[[], nn.Module], images: Images, batch_size: int
) -> Callable[[], object]:
    """Prepare one epoch of Lightning's trainer over a TensorDataset in memory.

    It has no logs, bars or checkpoints.

    Raises:
        Absent: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_lightning as lightning
    except ImportError as error:
        raise Absent(f"Lightning is not installed ({error})") from error
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = build()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    x, y = images.train
    prepared = TensorDataset(images.prepare(x), y)

    def epoch() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=1,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(
                Module(), DataLoader(prepared, batch_size=batch_size, shuffle=True)
            )

    return epoch


def keras_epoch(images: Images, batch_size: int) -> Callable[[], object]:
    """Prepare one epoch of LeNet by Keras 3 on JAX, compiled before.

    The images are in memory, with channels last as Keras likes.

    Raises:
        Absent: Keras or JAX is not installed, or Keras has started with another
            backend.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        import jax  # noqa: F401 - Keras itself fails later and less clearly without it
        import keras
    except ImportError as error:
        raise Absent(f"Keras 3 on JAX is not installed ({error})") from error
    if keras.backend.backend() != "jax":
        raise Absent(
            f"Keras runs on {keras.backend.backend()}; KERAS_BACKEND=jax is needed"
        )
    model: Any = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(6, 5, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(16, 5, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(120, activation="relu"),
            keras.layers.Dense(84, activation="relu"),
            keras.layers.Dense(CLASSES),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(), loss=loss)
    x, y = images.train
    pixels, labels = (
        images.prepare(x).permute(0, 2, 3, 1).contiguous().numpy(),
        y.numpy(),
    )
    return lambda: model.fit(pixels, labels, batch_size=batch_size, epochs=1, verbose=0)
