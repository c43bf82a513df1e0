"""Networks and images that the instruments are raced on.

They need no download, and are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablab import data, models

IMAGES = 2_000
TRAINING_STEPS = 60


def lenet() -> nn.Module:
    """Build LeNet for 28 x 28 images: 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def images(count: int = IMAGES) -> tuple[Tensor, Tensor]:
    """Draw blurred patterns of ten classes with noise, float32 (N, 1, 28, 28).

    They have MNIST's size and scale.
    """
    generator = torch.Generator().manual_seed(1)
    patterns = F.avg_pool2d(torch.rand(10, 1, 32, 32, generator=generator), 5, 1)
    patterns = (patterns - patterns.mean()) / patterns.std()
    classes = torch.arange(count) % 10
    noise = torch.randn(count, 1, 28, 28, generator=generator)
    return patterns[classes] + 2 * noise, classes


def trained_lenet() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Train LeNet on the images for some steps of Adam, and return both.

    The network is in eval mode.
    """
    torch.manual_seed(0)
    model, (x, y) = lenet(), images()
    return _train(model, lambda: F.cross_entropy(model(x[:500]), y[:500])), (x, y)


def trained_dense() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Train a dense network of 10,401 parameters on sinc for some steps.

    The 300 points come with it.
    """
    torch.manual_seed(0)
    model, (x, y) = (
        models.dense("1-100-100-1", activation="tanh"),
        data.target("sinc").train(),
    )
    return _train(model, lambda: F.mse_loss(model(x), y)), (x, y)


def trained_perceptron() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Train a perceptron of one hidden layer, 10,345 parameters, for some steps.

    It comes with its data: 1,000 images as vectors.
    """
    torch.manual_seed(0)
    x, y = images(1_000)
    model = nn.Sequential(nn.Linear(784, 13), nn.ReLU(), nn.Linear(13, 10))
    return _train(model, lambda: F.cross_entropy(model(x.flatten(1)), y)), (
        x.flatten(1),
        y,
    )


def small_networks(count: int) -> tuple[list[nn.Module], tuple[Tensor, Tensor]]:
    """Build untrained networks of 571 parameters, and the 300 points of sinc."""
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        networks.append(models.dense("1-5-10-10-10-10-10-5-1", activation="tanh"))
    return networks, data.target("sinc").train()


def _train(model: nn.Module, loss: Callable[[], Tensor]) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()
