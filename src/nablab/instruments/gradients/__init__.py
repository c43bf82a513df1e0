"""First derivatives, by weights and by inputs, and the rise of the loss nearby."""
