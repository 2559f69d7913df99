"""Models as people name them: base, experts, an expert, a constant, or what lies at a path.

In: a text, and the names of the experts. Out: a `Model`, which `evaluation.py` scores; or a message that says what is
near.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest, unknown
from evomerge.models.adapter_files import is_adapter

WITHOUT = "without:"  # and the name of an expert that a soup leaves out


@dataclass(frozen=True)
class Model:
    """A model as a person names it.

    Attributes:
        kind: what it is; `experts` is each task with its own expert, `expert` one of them on all tasks, `soup` the
            uniform average of all experts, or of all but one, `ensemble` the mean of what all of them say.
        value: the name of the expert, or of the one left out; the constant, or the path of recipe or model directory.
        factor: with which the weights of a recipe are multiplied,
        row: all of them, or those of this expert or other row.
    """

    kind: Literal["base", "experts", "expert", "soup", "constant", "recipe", "directory", "ensemble"]
    value: Any = None
    factor: float = 1.0
    row: str | None = None

    @property
    def choosable(self) -> bool:
        """Whether it is one of those among which people choose, and not what they hold them against."""
        return self.kind in ("soup", "constant", "recipe", "directory")


def described(model: Model) -> dict[str, Any]:
    """Return a model as plain data; a path is whole, so that it is the same from everywhere."""
    value = str(model.value.resolve()) if isinstance(model.value, Path) else model.value
    return {**vars(model), "value": value}


def model_of(data: Mapping[str, Any]) -> Model:
    """Return the model that `described` tells of."""
    at_a_path = data["kind"] in ("recipe", "directory")
    return Model(**{**data, "value": Path(data["value"]) if at_a_path else data["value"]})


def find_model(text: str, experts: Collection[str]) -> Model:
    """Return the model that a text stands for: base, experts, an expert, a constant, or else what lies at a path.

    Args:
        text: as it was written.
        experts: the names of the experts.

    Raises:
        ConfigError: there is no such model; the message says what is near.
        CheckpointError: it looks like a name on the hub, and is none.
    """
    if text in ("base", "experts"):
        return Model(text)
    if text in experts:
        return Model("expert", text)
    if text == "soup":
        return Model("soup")
    if text.startswith(WITHOUT):
        if (name := text.removeprefix(WITHOUT)) not in experts:
            raise ConfigError(unknown("expert", name, experts))
        return Model("soup", name)
    if text.startswith("constant:"):
        return Model("constant", _constant(text))
    from evomerge.models.hub import find_directory, is_name  # what only shows results does not wait for the hub

    path = Path(text).expanduser()
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return Model("recipe", path)
    if (path / "config.json").is_file() or is_adapter(path):
        return Model("directory", path)
    if (path / "recipe.yaml").is_file():
        return Model("recipe", path / "recipe.yaml")
    if is_name(text) and not path.parent.is_dir():  # what lies in a directory of ours is a slip of the pen
        return Model("directory", find_directory(text).path)
    raise ConfigError(_nothing_there(text, path, experts))


def _constant(text: str) -> float:
    try:
        value = float(text.removeprefix("constant:"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"'{text}' is no constant: write a number after the colon, such as constant:0.4.")
    return value


def _nothing_there(text: str, path: Path, experts: Collection[str]) -> str:
    """Say why a text names no model, and what may be meant."""
    if (path / "trials.jsonl").is_file():
        return (
            f"{path} has no winner yet, since its search has not ended: run the search to its end, or write one of "
            f"its trials as a recipe with `evomerge export`."
        )
    if path.is_file():
        return f"{path} is no recipe (.yaml): name a recipe, or the directory of a model."
    if path.is_dir():
        runs = sorted(str(run.parent) for run in path.glob("*/recipe.yaml"))
        hint = f" There is {', '.join(runs[:4])}{' ...' if len(runs) > 4 else ''}." if runs else ""
        return f"{path} is no model directory (it has no config.json) and no run directory (no recipe.yaml).{hint}"
    if path.parent != Path(".") and path.parent.is_dir():
        near = nearest(path.name, [other.name for other in path.parent.iterdir()])
        return f"There is no {path}." + (f" Did you mean {path.parent / near[0]}?" if near else "")
    what = unknown("model", text, ["base", "experts", "soup", "constant:0.4", *experts])
    return f"{what} Recipes, runs and model directories are named by their paths."
