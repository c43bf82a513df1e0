"""What a reader sees of a run while it goes on: in a terminal, a log or a notebook.

The command line and `nablab.run` share it.
"""
