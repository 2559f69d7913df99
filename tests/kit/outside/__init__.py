"""Somebody else's package: a searcher, a fitness, a method and a transform of its own, named in its own conf/."""
