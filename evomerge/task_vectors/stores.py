"""The names of the ways in which task vectors are kept: the choices of `model.store`, without torch.

Three of them keep every bit: float32, `expert` (θ_k itself, from its own file) and `auto`, which takes the smaller one.
The others lose some, and their deltas say how much at most (`packing.py`).
"""

AUTO, FLOAT32, EXPERT = "auto", "float32", "expert"
CHOICES = (AUTO, FLOAT32, "bfloat16", EXPERT, "int8", "int4")
LOSSY = ("bfloat16", "int8", "int4")
"""Those that make other candidates than the exact task vectors."""


def kept_as(store: str) -> str:
    """Return how task vectors are kept; float32 stands for all choices that keep every bit."""
    return store if store in LOSSY else FLOAT32
