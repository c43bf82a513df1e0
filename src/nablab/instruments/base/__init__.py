"""What instruments measure with: data, losses, the objective, replicas, results."""
