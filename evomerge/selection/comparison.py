"""Models side by side on the items of one split, as numbers that can be written and read.

In: what `evaluation.py` found; or a file. Out: a `Comparison`, or its text. JSON has no NaN: what is not finite is
written, and comes back, as None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from evomerge.selection.forgetting import Forgetting
from evomerge.selection.statistics import Paired, Score
from evomerge.trials import finite


@dataclass(frozen=True)
class Comparison:
    """Models side by side on the items of one split.

    Attributes:
        split: `search`, `select`, `report`, or `held_out`.
        metric: of the scores.
        measures: what the metric is, by task.
        items: how many items there were.
        models: scores by name; without any number for a model that has none.
        paired: each but the first minus the first.
        marks: by name, sentences on what is otherwise than the name says.
        errors: by name, why a model has no score.
        forgetting: what was forgotten and kept, where something was to be; means and differences are then of minus the
            score over the tasks to forget.
        of_weights: whether scores say how far the weights lie from the base's, whatever the items.
        chosen: a hash of the items, `digest` of their ids by task; empty where it is not known.
    """

    split: str
    metric: str
    measures: Mapping[str, str]
    items: int
    models: Mapping[str, Score]
    paired: Mapping[str, Paired]
    marks: Mapping[str, Sequence[str]]
    errors: Mapping[str, str]
    forgetting: Forgetting | None = None
    of_weights: bool = False
    chosen: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data; an error stands in the row of its model."""
        content = asdict(self)
        for name in ("forgetting", "of_weights", "chosen"):
            if not content[name]:
                del content[name]
        for name, error in content.pop("errors").items():
            content["models"][name]["error"] = error
        return content

    def to_json(self, **more: Any) -> str:
        """Return it as text, with more beside it."""
        return json.dumps(finite(self.to_plain() | more), indent=1, allow_nan=False)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Comparison:
        """Return what `to_plain` gave, without what stood beside it.

        Raises:
            ValueError: it is none.
        """
        try:
            rows = {name: dict(row) for name, row in content["models"].items()}
            errors = {name: row.pop("error") for name, row in rows.items() if "error" in row}
            known = {each.name: content[each.name] for each in fields(cls) if each.name in content}
            told = content.get("forgetting")
            return cls(
                **known
                | {
                    "models": {name: Score(**row) for name, row in rows.items()},
                    "paired": {name: Paired(**row) for name, row in content["paired"].items()},
                    "errors": errors,
                    "forgetting": Forgetting.from_plain(told) if told else None,
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it holds no models side by side ({error})") from error
