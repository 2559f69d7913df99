"""Configurations of mergekit-evolve as searches; `configuration.py` reads them."""
