"""Labelled images -> numbers: random real images, ours and anybody's go through the same door."""
