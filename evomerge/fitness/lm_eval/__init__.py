"""Benchmarks of lm-eval as a fitness."""
