"""(labels, slots) -> images."""
