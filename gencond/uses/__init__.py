"""What a condensed set is for."""
