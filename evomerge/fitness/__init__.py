"""Fitnesses score a live model item by item; objectives make numbers of it. `base.py` says what a fitness is."""
