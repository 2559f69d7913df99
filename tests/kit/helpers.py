"""What several tests need: settings composed as the command composes them, spaces without a model, and small
models for the loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from evomerge.runs.config import CONF, register
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.variable import Variable


def compose(*overrides: str) -> Any:
    """The configuration of `evomerge search <overrides>`."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("search", overrides=list(overrides))


def box(dim: int, low: float = 0.0, high: float = 1.5) -> CoefficientSpace:
    """A space of so many free coefficients: `dim` tensors of one element and one expert."""
    parameters = {f"p{i}": (1,) for i in range(dim)}
    return make_space("tensor", parameters, ["expert"], [Variable("weight", low, high, (low + high) / 2)])


def sphere(x: np.ndarray) -> float:
    """Best value 0 at 0.7 in every coordinate."""
    return -float(((x - 0.7) ** 2).sum())
