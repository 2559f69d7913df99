"""What several tests need: settings composed as the command composes them, spaces without a model, and small
models for the loop."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from evomerge.runs.config import CONF, register
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.variable import Variable


@cache
def _chosen(choices: tuple[str, ...]) -> DictConfig:
    """What Hydra composes of choices of groups alone."""
    begun = GlobalHydra().is_initialized()  # by the command, around what it composes
    with nullcontext() if begun else initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("search", overrides=list(choices))


def compose(*overrides: str) -> Any:
    """The configuration of `evomerge search <overrides>`: choices of groups are composed once, as it takes a tenth of a
    second, and settings put into a copy by Hydra's own function, as Hydra does it.
    """
    register()
    given = OverridesParser.create().parse_overrides(list(overrides))
    choices = [one for one in given if (CONF / one.key_or_group).is_dir() or one.is_sweep_override()]  # or refused
    config = deepcopy(_chosen(tuple(str(one.input_line) for one in choices)))
    ConfigLoaderImpl._apply_overrides_to_config([one for one in given if one not in choices], config)
    return config


def box(dim: int, low: float = 0.0, high: float = 1.5) -> CoefficientSpace:
    """A space of so many free coefficients: `dim` tensors of one element and one expert."""
    parameters = {f"p{i}": (1,) for i in range(dim)}
    return make_space("tensor", parameters, ["expert"], [Variable("weight", low, high, (low + high) / 2)])


def sphere(x: np.ndarray) -> float:
    """Best value 0 at 0.7 in every coordinate."""
    return -float(((x - 0.7) ** 2).sum())
