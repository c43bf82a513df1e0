"""Commands on data sets: ``data list`` and ``data get``."""

from __future__ import annotations

from nablab.cli.app import DONE, Json, data_app, described, output
from nablab.cli.streams import print_json


@data_app.command(name="list")
@described
def list_data(*, as_json: Json = False) -> int:
    """List the data sets: what is here, how large, from where, under which license."""
    from nablab.cli.data_table import print_sets, set_facts

    if as_json:
        print_json(set_facts())
    else:
        print_sets(output, set_facts())
    return DONE


@data_app.command(name="get")
@described
def get_data(name: str, /) -> int:
    """Fetch a data set, verify it, and say where it lies.

    Args:
        name: The data set; 'nablab data list' names them.
    """
    from nablab.cli.data_table import get

    get(output, name)
    return DONE
