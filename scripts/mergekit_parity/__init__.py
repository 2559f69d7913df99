"""Parts of `check_mergekit.py`: cases (models, recipes), peer (mergekit in its own environment), compare (tensors)."""
