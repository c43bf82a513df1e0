"""Images in memory, and what turns a batch of them into inputs."""
