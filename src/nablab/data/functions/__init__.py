"""Functions of one variable to learn."""
