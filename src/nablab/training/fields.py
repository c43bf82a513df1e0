"""Fields of experiments that name a way to train."""

from __future__ import annotations

from typing import Literal

OptimizerName = Literal["Adam", "AdamW", "RMSprop", "SGD"]
"""What `nablab.training.optimizer` makes."""
