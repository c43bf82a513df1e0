"""Fields of experiments that name networks: by notation, or the user's own."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from nablab.errors import UsageError
from nablab.files.places import in_text, is_file, place
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


class WeightsFile(Kind):
    """A file with the weights of a network: safetensors, or what `torch.save` writes.

    Whether they fit can be seen with the network only.
    """

    words = "a file of weights of your own"
    plural = "files of weights of your own"

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        if not is_file(text):
            raise UsageError(
                f"There is no file of weights at {in_text(text)}: give a .safetensors "
                "file, or a .pth file that torch.save wrote."
            )

    def source(self, text: str) -> str:
        """Return the SHA-256 of the file."""
        with place(text).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


Activation = Literal["leaky_relu", "relu", "tanh", "sigmoid", "gelu", "silu", "elu"]
"""What stands between the layers of a dense network."""
NetworkField = Annotated[str, Network()]
NetworkList = Annotated[tuple[NetworkField, ...], Distinct(least=0)]
WeightsField = Annotated[str, WeightsFile()] | None
OwnModelField = Annotated[str, OwnModel()] | None
