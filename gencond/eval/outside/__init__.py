"""Judges that others wrote, each run in an environment of its own."""
