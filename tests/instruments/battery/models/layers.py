"""Feed-forward networks: their layers, parameters of unusual shapes, and embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.instruments.battery.case import EITHER, REFUSAL, Model, rows_of


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def regression() -> list[tuple[Tensor, Tensor]]:
    """A ragged pair of batches."""
    return [
        (torch.randn(5, 3), torch.randn(5, 2)),
        (torch.randn(2, 3), torch.randn(2, 2)),
    ]


def classification() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3), torch.arange(7) % 2


def convolutional() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)
    )
    network(torch.randn(9, 1, 3, 3))  # running statistics of its own
    return network.eval()


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 1, 3, 3), torch.arange(7) % 2


class Frozen(nn.Module):
    """A network whose first layer is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


class Scaled(nn.Module):
    """A learned temperature, a parameter without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(0.3))
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.logit_scale.exp() * self.layer(x)


class WithEmpty(nn.Module):
    """A parameter without elements, such as an adapter of rank 0."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(0, 3))
        self.up = nn.Parameter(torch.zeros(2, 0))
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) + x @ self.down.T @ self.up.T


class Embedded(nn.Module):
    """The mean of embeddings under a head; padding (token 0) does not count."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        real = (tokens != 0).unsqueeze(-1)
        return self.head(torch.tanh((self.embedding(tokens) * real).mean(1)))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.EmbeddingBag(5, 3), nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)))


def sentences() -> tuple[Tensor, Tensor]:
    return torch.randint(1, 5, (7, 4)), torch.arange(7) % 2


class Graph(nn.Module):
    """A graph network; node features, edges, one label a node."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        def spread(h: Tensor) -> Tensor:
            return h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])

        return self.last(spread(torch.tanh(self.first(spread(nodes)))))


def graph() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(7, 3), torch.randint(0, 7, (2, 11)), torch.arange(7) % 2


class Distances(nn.Module):
    """Distances to learned centers beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(4, 3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cdist(x, self.centers)) + x[:, :2]


class Complex(nn.Module):
    """Complex weights, as of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs()


class MixedPrecision(nn.Module):
    """A head in float64 behind a body in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)).to(self.head.weight.dtype))


def half(dtype: torch.dtype, measured: torch.dtype | None) -> Model:
    """A network in half precision, measured in it or in float64."""
    return Model(
        build=lambda: dense().to(dtype),
        data=lambda: tuple(tensor.to(dtype) for tensor in regression()[0]),
        sample=rows_of,
        dtype=measured,
        answer=EITHER,
        tolerance=1e-6 if measured else 2e-3,
        matchable=True,
    )


ROWS = {
    "dense": Model(build=dense, data=regression, sample=rows_of, matchable=True),
    "dense, in float32": Model(
        build=dense,
        data=regression,
        sample=rows_of,
        matchable=True,
        dtype=None,
        tolerance=2e-3,
    ),
    "convolution, batch norm": Model(
        build=convolutional,
        data=images,
        loss="cross_entropy",
        sample=rows_of,
        matchable=True,
    ),
    "frozen part": Model(build=Frozen, data=regression, sample=rows_of),
    "parameter without axes": Model(build=Scaled, data=regression, sample=rows_of),
    "parameter without elements": Model(
        build=WithEmpty, data=regression, sample=rows_of
    ),
    "embedding": Model(
        build=Embedded,
        data=sentences,
        loss="cross_entropy",
        sample=rows_of,
        token_inputs=True,
    ),
    "embedding, sparse": Model(
        build=lambda: Embedded(sparse=True),
        data=sentences,
        loss="cross_entropy",
        sample=rows_of,
        token_inputs=True,
    ),
    "embedding, padding": Model(
        build=lambda: Embedded(padding_idx=0),
        data=lambda: (torch.randint(0, 5, (7, 4)), torch.arange(7) % 2),
        loss="cross_entropy",
        sample=rows_of,
        token_inputs=True,
    ),
    "embedding bag": Model(
        build=Bag,
        data=sentences,
        loss="cross_entropy",
        sample=rows_of,
        token_inputs=True,
    ),
    "graph network": Model(
        build=Graph,
        data=graph,
        loss="cross_entropy",
        answers={"gradient_norm per sample": REFUSAL, "input_sensitivity": REFUSAL},
    ),
    "distances": Model(build=Distances, data=regression, sample=rows_of),
    "complex weights": Model(
        build=Complex, data=regression, sample=rows_of, answer=EITHER
    ),
    "float32 and float64": Model(
        build=MixedPrecision, data=regression, sample=rows_of, answer=EITHER
    ),
    "bfloat16": half(torch.bfloat16, None),
    "float16": half(torch.float16, None),
    "bfloat16, measured in float64": half(torch.bfloat16, torch.float64),
    "float16, measured in float64": half(torch.float16, torch.float64),
}
