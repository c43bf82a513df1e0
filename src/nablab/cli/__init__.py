"""Everything the terminal shows: commands, the live table, tables and messages."""

import gc

# While modules load, the garbage collector runs again and again and finds nothing. It
# would take a twentieth of the time of `nablab list`.
gc.set_threshold(50_000, *gc.get_threshold()[1:])
