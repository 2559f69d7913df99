"""Settings of transforms that runs and recipes of earlier versions do not name, at the values that these had.

In: a step of a chain as such a run or recipe has it, plain data. Out: the same with these settings, so that the rows
are those that were scored. Transforms got them where earlier numbers were not those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BEFORE: Mapping[str, Mapping[str, Any]] = {"opcm": {"tables": "projected"}, "iso_cts": {"zeros": False}}
"""By the names of the transforms."""
_CLASSES = {"evomerge.transforms.sequential.Opcm": "opcm", "evomerge.transforms.spectral.IsoCts": "iso_cts"}


def missing(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a step does not name, and had in another way then.

    Args:
        step: the settings of a transform, with its name (`name`, as in recipes) or its class (`_target_`, as in runs).
    """
    name = str(step.get("name") or _CLASSES.get(str(step.get("_target_"))))
    return {setting: value for setting, value in BEFORE.get(name, {}).items() if setting not in step}


def completed(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step of an earlier run or recipe with all settings that it had."""
    return {**step, **missing(step)}
