"""The table of models: one file for each kind, one row for each form."""

from tests.instruments.battery.case import Model
from tests.instruments.battery.models import (
    attention,
    closures,
    layers,
    losses,
    recurrent,
    refused,
    reparametrized,
    states,
)

MODELS: dict[str, Model] = {
    **layers.ROWS,
    **recurrent.ROWS,
    **attention.ROWS,
    **reparametrized.ROWS,
    **states.ROWS,
    **closures.ROWS,
    **losses.ROWS,
    **refused.ROWS,
}
