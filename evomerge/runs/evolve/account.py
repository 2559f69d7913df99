"""The account of a configuration: settings of a search, and what became of each key of the configuration.

In: keys and the settings that stand for them. Out: an `Account`, which the command prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Line:
    """What became of a key.

    Attributes:
        theirs: the key and its value.
        ours: the setting that stands for it; empty where there is none.
        why: where it is otherwise, why.
    """

    theirs: str
    ours: str
    why: str = ""


@dataclass
class Account:
    """A configuration as a search.

    Attributes:
        settings: by name, as the command line takes them.
        lines: what became of each key.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def take(self, theirs: str, settings: Mapping[str, Any], why: str = "") -> None:
        """Take settings over, and tell of them."""
        self.settings |= settings
        self.lines.append(Line(theirs, ", ".join(f"{name}={_shown(value)}" for name, value in settings.items()), why))

    def tell(self, theirs: str, why: str) -> None:
        """Tell of what no setting stands for."""
        self.lines.append(Line(theirs, "", why))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shown(one)}" for name, one in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
