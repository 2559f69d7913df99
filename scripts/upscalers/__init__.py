"""What scripts/merge_upscalers.py is made of: the network, its weights, and the pictures that it is scored on."""
