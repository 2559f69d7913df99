"""Evaluators make trials of the points of a batch."""
