"""The entry point: parse, call the command, and exit with a code.

What went wrong is said in a sentence.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import CycloptsError

from nablab.cli import data_sets, experiments, finished, measure  # noqa: F401 (they register commands)
from nablab.cli.app import DONE, FAILED, INTERRUPTED, USAGE, app, errors
from nablab.cli.lasting import lasting_output, what_is_lost
from nablab.cli.streams import make_readable, only_json
from nablab.errors import (
    TRACEBACK,
    Interrupted,
    NablabError,
    UsageError,
    in_short,
    raised,
)

UNFORESEEN = "This should not happen. Please report it:"


@lasting_output()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code.

    The code is 0 (done), 1 (a run failed), 2 (usage) or 130 (interrupted).
    """
    make_readable()
    try:
        code = _command(arguments)
    except CycloptsError as error:
        code = _fail(f"{error}", error, USAGE)
        errors.print(
            "'nablab --help' and 'nablab COMMAND --help' explain the commands.",
            style="dim",
        )
    except UsageError as error:
        code = _fail(f"{error}", error, USAGE)
    except (KeyboardInterrupt, Interrupted):
        errors.print("Stopped.")
        code = INTERRUPTED
    except NablabError as error:
        code = _fail(f"{error}", error, FAILED)
    except OSError as error:
        # Errors of the store name a file: without one it is standard output.
        if error.errno == errno.ENOSPC and error.filename is None:
            errors.print(what_is_lost(error), markup=False)
            code = FAILED
        else:
            code = _fail(_of_the_system(error), error, FAILED)
    except SystemExit as error:
        code = _fail(f"{raised('A file of yours', error)}", error, FAILED)
    except Exception as error:
        code = _fail(f"{UNFORESEEN} {raised('The command', error)}", error, FAILED)
    sys.exit(code)


def _command(arguments: Sequence[str] | None) -> int:
    """Parse the words and call their command.

    With --json nothing else reaches standard output.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    command, bound, _ = app.parse_args(
        words, exit_on_error=False, print_error=False, error_console=errors
    )
    with only_json(bool(bound.arguments.get("as_json"))):
        return command(*bound.args, **bound.kwargs) or DONE


def _of_the_system(error: OSError) -> str:
    """Say what the operating system refused, and where."""
    named = str(error.filename) if error.filename is not None else ""
    place = f" ({named if len(named) <= 200 else named[:200] + '…'})" if named else ""
    return f"{error.strerror or in_short(error)}{place}."


def _fail(message: str, error: BaseException, code: int) -> int:
    """Print why a command ended, and where if that is asked for."""
    errors.print(f"Error: {message}", markup=False, soft_wrap=True)
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    return code
