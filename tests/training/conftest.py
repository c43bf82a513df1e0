"""Small problems and the slow truth that every engine is compared with."""

import numpy as np
import pytest
import torch
from torch import nn

from nablab.training import BatchedEngine, FusedEngine, SequentialEngine, build_replicas

ENGINES = {
    "batched": BatchedEngine,
    "fused": FusedEngine,
    "sequential": SequentialEngine,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(ENGINES))
def engine_class(request):
    return ENGINES[request.param]


class Problem:
    """K dense networks on few samples, with what PyTorch makes of them in a plain loop."""

    def __init__(
        self,
        *,
        dtype=torch.float64,
        loss="mse",
        per_replica_targets=False,
        replicas=3,
        samples=11,
    ):
        self.dtype, self.loss, self.per_replica_targets, self.replicas = (
            dtype,
            loss,
            per_replica_targets,
            replicas,
        )
        draw = torch.Generator().manual_seed(5)
        self.x = torch.randn(samples, 2, generator=draw, dtype=dtype)
        copies = (replicas,) if per_replica_targets else ()
        if loss == "cross_entropy":
            self.y = torch.randint(3, (*copies, samples), generator=draw)
        else:
            self.y = torch.randn(*copies, samples, 3, generator=draw, dtype=dtype)

    def build(self):
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).to(self.dtype)

    def modules(self):
        return build_replicas(self.build, range(self.replicas))

    def engine(self, engine_class, optimizer, modules=None):
        modules = modules or self.modules()
        return engine_class(
            modules,
            self.x,
            self.y,
            loss=self.loss,
            optimizer=optimizer,
            per_replica_targets=self.per_replica_targets,
        )

    def plain_loop(self, make_optimizer, rates, batches):
        """Losses (steps, K) and modules, by PyTorch alone; ``make_optimizer(parameters,
        replica)``.
        """
        criterion = {"mse": nn.MSELoss(), "cross_entropy": nn.CrossEntropyLoss()}[
            self.loss
        ]
        modules, losses = self.modules(), np.empty((len(rates), self.replicas))
        for k, module in enumerate(modules):
            optimizer = make_optimizer(module.parameters(), k)
            learning_rate = optimizer.param_groups[0]["lr"]
            y = self.y[k] if self.per_replica_targets else self.y
            for step, rate in enumerate(rates):
                chosen = slice(None) if batches is None else batches[step, k]
                optimizer.param_groups[0]["lr"] = learning_rate * rate
                optimizer.zero_grad()
                loss = criterion(module(self.x[chosen]), y[chosen])
                loss.backward()
                optimizer.step()
                losses[step, k] = loss.item()
        return losses, modules


@pytest.fixture
def problem():
    return Problem


def stacked(modules):
    """Parameters of K modules as {name: (K, ...)}."""
    named = [dict(module.named_parameters()) for module in modules]
    return {
        name: torch.stack([own[name].detach() for own in named]) for name in named[0]
    }


@pytest.fixture(name="stacked")
def stacked_fixture():
    return stacked
