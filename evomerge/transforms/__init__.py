"""Transforms: what is done to all task vectors once, before the search, a file a family (`base.py` says what one is).

ties.py        ties: trim and elect at once
magnitude.py   trim, breadcrumbs: what is kept is chosen by magnitude
chance.py      dare, della: what is kept is drawn
signs.py       elect, magmax, unified: experts agree on signs, or on owners
masks.py       consensus, tall, cabs, sce: what other task vectors say of an element
importance.py  pcb, widen: elements and columns weighted by how much they matter
spectral.py    truncate, star, tsvm, iso_c, iso_cts, cart, ranks: matrices by their singular values
sequential.py  opcm: one expert after the other
optimised.py   wudi, optmerge, doge: a loss of the task vectors alone, minimised once
earlier.py     settings that earlier runs and recipes do not name
subspace.py    knots, core_space: adapters in directions that they share (directions.py)
"""
