"""Searchers propose coefficients by ask and tell: CMA-ES, TPE, random, grid. `base.py` says what a searcher is."""
