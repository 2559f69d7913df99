"""Task vectors: what a delta is, one file for each kind, and the store that holds them."""
