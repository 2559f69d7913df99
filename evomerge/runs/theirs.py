"""What a merge YAML of mergekit's says of the models of a search: a method, and numbers for every parameter.

In: its text, and base and experts of the search. Out: a `Theirs`, refused before weights are read where it names other
models; and with the parameters of these, what it says of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.models.hub import short_name
from evomerge.models.vocabulary import read_object
from evomerge.problem import Sources
from evomerge.recipes.mergekit.document import Document, Reference, is_mergekit, read_document
from evomerge.recipes.mergekit.methods import Peer, peer_named
from evomerge.recipes.mergekit.numbers import Read, Reader
from evomerge.recipes.mergekit.plan import make_plan
from evomerge.space.coefficients import CoefficientSpace


@dataclass(frozen=True, eq=False)
class Theirs:
    """A merge YAML whose models are those of a search.

    Attributes:
        document: the YAML.
        peer: its method.
        rows: expert of the search -> which model of the YAML; one that the YAML has not is left out.
        architecture: of the base, as its config.json names it.
    """

    document: Document
    peer: Peer
    rows: Mapping[str, Reference]
    architecture: str

    def read(self, parameters: Mapping[str, tuple[int, ...]]) -> Read:
        """Return the method, and its numbers for each parameter.

        Args:
            parameters: name -> shape, in the order of the live model.

        Raises:
            ConfigError: a setting is missing, of the wrong kind, or cannot be honoured; the message names the line.
        """
        plan = make_plan(self.document, parameters, {name: name for name in parameters}, self.architecture)
        return Reader(self.document, self.peer, self.rows, plan, parameters).read()


def find_theirs(text: str, experts: Sequence[str], sources: Sources | None, beside: Path) -> Theirs:
    """Return a merge YAML whose models are those of a search.

    Args:
        text: the YAML.
        experts: their names.
        sources: base and experts, by which the YAML may name them.
        beside: where the YAML lies.

    Raises:
        ConfigError: it cannot be read, its method is none of evomerge's, or it names other models.
    """
    document = read_document(text)
    peer = peer_named(document.method.text())
    if isinstance(peer, str):
        raise document.method.error(peer)
    if sources and document.base:
        _check_base(document.base, sources, beside)
    models = [model for model in document.models if model != document.base or peer.base == "listed"]
    rows = {_row(model, experts, sources, beside): model for model in models}
    config = read_object(sources.base / "config.json") if sources else {}
    architecture = str(next(iter(config.get("architectures") or ()), "LlamaForCausalLM"))
    return Theirs(document, peer, rows, architecture)


def is_file(entry: Any) -> bool:
    """Whether an entry of `compare.methods` is the path of a YAML."""
    return isinstance(entry, str) and entry.endswith((".yaml", ".yml"))


def find_files(paths: Sequence[str]) -> dict[str, Path]:
    """Return the merge YAMLs at some paths, by their names.

    Raises:
        ConfigError: there is no such file, it is no merge YAML, or another has the same name.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise ConfigError(f"compare.methods: there is no file {path}: write the path of a merge YAML.")
        if not is_mergekit(path.read_text(encoding="utf-8")):
            raise ConfigError(
                f"compare.methods: {path} has no merge_method, so it is no merge YAML of mergekit's: leave it out."
            )
        if path.name in found:
            raise ConfigError(f"compare.methods: {found[path.name]} and {path} have one name: rename one of them.")
        found[path.name] = path
    return found


def open_files(files: Mapping[str, Path], sources: Sources) -> dict[str, Theirs]:
    """Return merge YAMLs whose models are those of a search, by name.

    Raises:
        ConfigError: one cannot be read, or names other models; the message names file and line.
    """
    found: dict[str, Theirs] = {}
    for name, path in files.items():
        try:
            found[name] = find_theirs(path.read_text(encoding="utf-8"), list(sources.experts), sources, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return found


def on_groups(values: Mapping[str, Mapping[str, float]], space: CoefficientSpace) -> np.ndarray:
    """Return the numbers of the parameters by group, (G, K); 0 for an expert that the YAML has not.

    Raises:
        ConfigError: parameters of one group have different numbers.
    """
    found = np.zeros((len(space.groups), len(space.rows)))
    for place, group in enumerate(space.groups):
        first = group.spans[0].parameter
        for span in group.spans:
            if values[span.parameter] != values[first]:
                raise ConfigError(
                    f"{first} and {span.parameter} have different numbers there, and one in this space "
                    f"({group.name}): write space=tensor, or another space that is fine enough."
                )
        found[place] = [values[first].get(row, 0.0) for row in space.rows]
    return found


def _row(model: Reference, rows: Sequence[str], sources: Sources | None, beside: Path) -> str:
    """Return the expert of the search that a model is."""
    for name in rows:
        path, hub = sources.experts.get(name) if sources else None, sources.hub.get(name, "") if sources else ""
        if sources and name in sources.dequantised:
            path, hub = Path(sources.dequantised[name]), sources.dequantised[name]
        if _is_at(model, path, hub, name, beside):
            return name
    raise ConfigError(
        f"line {model.line}: {model} is none of the experts of this search ({', '.join(rows)}): name it in "
        f"model.experts."
    )


def _check_base(model: Reference, sources: Sources, beside: Path) -> None:
    """Refuse a YAML with another base than that of the search: its weights are of other differences."""
    hub = sources.hub.get("", "")
    if not _is_at(model, sources.base, hub, short_name(hub or str(sources.base)), beside):
        raise ConfigError(
            f"line {model.line}: its base_model is {model}, and the base of this search is {hub or sources.base}: name "
            f"the same one in model.base, or that one in the YAML."
        )


def _is_at(model: Reference, path: Path | None, hub: str, name: str, beside: Path) -> bool:
    """Return whether a model is one of the search: by its directory where it is there, else by its name on the hub, or
    by what it is called.

    Args:
        model: as the YAML names it, from here or from where the YAML lies.
        path: the directory of the one of the search.
        hub: what that is on the hub.
        name: what that is called.
        beside: where the YAML lies.
    """
    text = model.lora.partition("@")[0] if model.lora else model.path
    there = next((place for place in (Path(text).expanduser(), beside / text) if place.is_dir()), None)
    if there and path and path.is_dir():
        return path.samefile(there)
    return text == hub.partition("@")[0] or short_name(text) == name
