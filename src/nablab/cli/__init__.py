"""Everything the terminal shows: commands, the live table, tables and messages."""

import gc

# While modules load, garbage is looked for again and again, and none is found: a
# twentieth of the time that `nablab list` takes.
gc.set_threshold(50_000, *gc.get_threshold()[1:])
