"""What people see of a run while it goes on: in a terminal, in a log, in a notebook.

The command line and `nablab.run` share it.
"""
