"""All that the terminal shows: the commands, the live table, tables and messages."""
