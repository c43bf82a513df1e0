"""Fields of experiments that name networks: by notation, or the user's own."""

from __future__ import annotations

from typing import Annotated, Literal

from nablab.settings.kinds import Distinct, Kind


class Network(Kind):
    """A network by its name or its layers.

    Whether it takes the data can be checked with the data only: `Networks.check`.
    """

    words = "a network by name or layers"
    plural = "networks by name or layers"
    examples = ("1-9-1", "lenet", "flatten-16", "mlp-10")


class OwnModel(Kind):
    """The user's own network, ``package.module:factory`` or ``file.py:factory``."""

    words = "a factory of your own"
    plural = "factories of your own"

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        from nablab.models.factory import load_factory

        load_factory(text)

    def source(self, text: str) -> str:
        """Return the hash of its code."""
        from nablab.models.factory import source_hash

        return source_hash(text)


Activation = Literal["leaky_relu", "relu", "tanh", "sigmoid", "gelu", "silu", "elu"]
"""What stands between the layers of a dense network."""
NetworkField = Annotated[str, Network()]
NetworkList = Annotated[tuple[NetworkField, ...], Distinct(least=0)]
OwnModelField = Annotated[str, OwnModel()] | None
