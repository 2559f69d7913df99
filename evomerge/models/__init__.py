"""A model on disk or in memory as named tensors: weights, checkpoints, vocabularies, the live model, the hub."""
