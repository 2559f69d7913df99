"""The sums and products of a merge. What is fast stands here beside the plain form that it is tested against."""
