"""What the card of a model says about it: the header of its README.md, between lines of dashes.

In: a model directory. Out: the header as a mapping, the licence, the names of data sets. A card that is not there, or
whose header cannot be read, says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load


def read_card(path: Path) -> dict[str, Any]:
    """Return the header of a model's card; an empty one where there is none that can be read."""
    try:
        return metadata_load(path / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def read_licence(path: Path) -> str | None:
    """Return the licence that a model's card states; None where it states none."""
    header = read_card(path)
    licence = header.get("license_name") if header.get("license") == "other" else header.get("license")
    return str(licence) if licence else None


def data_sets_of(path: Path) -> Iterator[str]:
    """Yield the names of the data sets that a model's card says it was trained or measured on."""
    header = read_card(path)
    given = header.get("datasets")
    yield from (str(name) for name in (given if isinstance(given, list) else [given]) if name)
    for model in _mappings(header.get("model-index")):
        for result in _mappings(model.get("results")):
            for dataset in _mappings([result.get("dataset")]):
                yield from (dataset[key] for key in ("type", "name", "config") if isinstance(dataset.get(key), str))


def _mappings(values: Any) -> list[dict[str, Any]]:
    """Return the mappings in a list; none where it is no list, as in a header that somebody wrote by hand."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
