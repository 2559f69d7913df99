"""The sums and products of a merge."""
