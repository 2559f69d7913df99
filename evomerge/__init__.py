"""Finds the coefficients with which fine-tuned experts of one base model should be merged."""

__version__ = "0.2.1.dev0"
