"""Transforms: what is done to all task vectors once, before the search (`base.py` says what one is)."""
