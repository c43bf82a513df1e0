"""How code comes in: names on demand, and a user's own files."""
