"""mergekit's merge YAML, written and read: `write.py` and `settings.py` out, the others in, `methods.py` for both.

In reading, a `document` becomes a `plan` (which number of it each tensor gets), and the plan a recipe (`read.py`).
"""
