"""mergekit's merge YAML as objects: models, slices and settings, with the lines in which they stand.

In: text. Out: a `Document`, in which `models`, `slices` and a single entry of `modules` are one thing, slices of
sources. What no setting can say is refused here; what depends on the models is checked in `plan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from evomerge.common.errors import ConfigError
from evomerge.common.names import DTYPES, unknown
from evomerge.recipes.mergekit.nodes import Node, Notes, read_nodes

Settings = Mapping[str, Node]
TOP = (
    *("models", "slices", "modules", "merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source"),
    *("tokenizer", "chat_template", "parameters"),
)


@dataclass(frozen=True)
class Reference:
    """A model as mergekit names it: two are one model if path, revision and adapter are the same.

    Attributes:
        path: a directory, or `owner/name`.
        revision: of the hub.
        lora: the same of an adapter that is merged into it first.
        line: where it stands.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    line: int = field(default=0, compare=False)

    @property
    def place(self) -> str:
        """The model as evomerge names it, or its adapter: a directory, `owner/name` or `owner/name@revision`."""
        return self.lora or self.alone

    @property
    def alone(self) -> str:
        """The same without its adapter."""
        return f"{self.path}@{self.revision}" if self.revision else self.path

    def without(self) -> Reference:
        """Return the model without its adapter."""
        return replace(self, lora=None)

    def check_adapter(self, base: Reference) -> None:
        """Refuse an adapter on another model than the base.

        Args:
            base: the base.

        Raises:
            ConfigError: there is one.
        """
        if self.lora and self.without() != base:
            raise ConfigError(
                f"line {self.line}: {self} is an adapter on another model than the base ({base}), and an adapter is an "
                f"expert of the model that it was trained on: fold it in first (PEFT's merge_and_unload, then "
                f"save_pretrained), and name that directory."
            )

    def __str__(self) -> str:
        return self.alone + (f"+{self.lora}" if self.lora else "")


@dataclass(frozen=True)
class Origin:
    """A model that takes part in a slice.

    Attributes:
        model: which.
        layers: first and last + 1; None for all of them.
        settings: its own.
        line: where it stands.
    """

    model: Reference
    layers: tuple[int, int] | None
    settings: Settings
    line: int


@dataclass(frozen=True)
class Slice:
    """Layers of the merged model, and of what they are made.

    Attributes:
        sources: in their order.
        settings: of the slice.
        line: where it stands.
    """

    sources: tuple[Origin, ...]
    settings: Settings
    line: int

    def source(self, model: Reference) -> Origin | None:
        """The source that is a model, if it is there."""
        return next((each for each in self.sources if each.model == model), None)


@dataclass(frozen=True)
class Document:
    """A merge YAML.

    Attributes:
        method: mergekit's name of the method, with its line.
        base: `base_model`.
        slices: one, without layers, where the file names whole models.
        scopes: settings of all slices, the nearest first.
        dtype: in which mergekit computes.
        out_dtype: in which it writes, where that is another.
        tokenizer: `tokenizer`, or the value of `tokenizer_source`.
        template: `chat_template`.
        notes: what is not read.
    """

    method: Node
    base: Reference | None
    slices: tuple[Slice, ...]
    scopes: tuple[Settings, ...]
    dtype: str | None
    out_dtype: str | None
    tokenizer: Node | None
    template: Node | None
    notes: Notes

    @property
    def models(self) -> list[Reference]:
        """All models that take part, in their order; the base is among them only where it is listed."""
        return list(dict.fromkeys(source.model for each in self.slices for source in each.sources))


def is_mergekit(text: str) -> bool:
    """Whether a text is a merge YAML of mergekit's, and no recipe: it names its method there."""
    return any(line.startswith("merge_method:") for line in text.splitlines())


def read_document(text: str) -> Document:
    """Read a merge YAML.

    Raises:
        ConfigError: it is none, or says what cannot be honoured; the message names the line.
    """
    root, notes = read_nodes(text), Notes()
    notes.unread(root, TOP, "a merge")
    method = root.get("merge_method")
    if method is None:
        raise root.error("there is no merge_method, which says how models are merged")
    kinds = [kind for kind in ("models", "slices", "modules") if root.get(kind)]
    if len(kinds) != 1:
        raise root.error(f"there must be one of models, slices and modules, and there is {' and '.join(kinds) or None}")
    base = root.get("base_model")
    scopes, holder = [_settings(root)], root
    if kinds == ["modules"]:
        holder = _module(root.items["modules"])
        scopes.insert(0, _settings(holder))
    reference = read_reference(base) if base else None
    models, slices = holder.get("models"), holder.get("slices")
    found = [_models(models, notes)] if models else [_slice(one, reference, notes) for one in (slices or holder).list]
    tokenizer, named = root.get("tokenizer"), root.get("tokenizer_source")
    if tokenizer and named:
        raise named.error("tokenizer_source and tokenizer are two words for one thing: leave one of them out")
    return Document(
        method,
        reference,
        tuple(found),
        tuple(scopes),
        _dtype(root.get("dtype")),
        _dtype(root.get("out_dtype")),
        tokenizer or named,
        root.get("chat_template"),
        notes,
    )


def _module(modules: Node) -> Node:
    if len(modules.items) != 1:
        raise modules.error(
            f"modules names {', '.join(modules.items)}, each with models of its own, and evomerge merges all of a "
            f"model with one set of experts. Write `models` in place of `modules`, with filters by parts of names"
        )
    return next(iter(modules.items.values()))


def _models(models: Node, notes: Notes) -> Slice:
    sources = []
    for one in models.list:
        notes.unread(one, ("model", "parameters"), "a model in `models`")
        sources.append(Origin(read_reference(_needed(one, "model")), None, _settings(one), one.line))
    return _checked(Slice(tuple(sources), {}, models.line))


def _slice(node: Node, base: Reference | None, notes: Notes) -> Slice:
    notes.unread(node, ("sources", "base_model", "parameters", "residual_weight"), "a slice")
    own = node.get("base_model")
    if own and read_reference(own) != base:
        raise own.error(
            f"this slice has {own.plain()} for its base, and all of a model has one base in evomerge. Write one "
            f"base_model above, or merge the slices' parts one after another"
        )
    sources = []
    for one in _needed(node, "sources").list:
        notes.unread(one, ("model", "layer_range", "parameters"), "a source of a slice")
        reach = _needed(one, "layer_range")
        ends = [end.value for end in reach.list]
        if len(ends) != 2 or not all(isinstance(end, int) for end in ends):
            raise reach.error(f"layer_range is {reach.plain()}: write the first layer and the one after the last")
        sources.append(Origin(read_reference(_needed(one, "model")), (ends[0], ends[1]), _settings(one), one.line))
    return _checked(Slice(tuple(sources), _settings(node), node.line))


def _checked(found: Slice) -> Slice:
    """Refuse a model that is named twice, as mergekit does."""
    seen: dict[Reference, Origin] = {}
    for source in found.sources:
        if source.model in seen:
            raise ConfigError(
                f"line {source.line}: {source.model} is named twice, and the first is in line "
                f"{seen[source.model].line}: name each model once."
            )
        seen[source.model] = source
    if not seen:
        raise ConfigError(f"line {found.line}: there is no model.")
    return found


def _needed(node: Node, key: str) -> Node:
    if (found := node.get(key)) is None:
        raise node.error(f"there is no {key}")
    return found


def _settings(node: Node) -> Settings:
    found = node.get("parameters")
    return {} if found is None else {key: value for key, value in found.items.items() if value.value is not None}


def read_reference(node: Node) -> Reference:
    """A model: `path`, `path@revision`, `path+adapter`, or a mapping of these."""
    if not isinstance(node.value, dict):
        model, _, lora = node.text().partition("+")
        return Reference(*_place(Node(model, node.line)), lora=lora or None, line=node.line)
    if other := next((key for key in node.items if key not in ("model", "lora", "override_architecture")), None):
        raise node.error(f"a model has model and lora, and no {other}")
    if node.get("override_architecture"):
        raise node.error("override_architecture is not read by evomerge: write the architecture into config.json")
    lora = node.get("lora")
    lora_place = None if lora is None else "@".join(part for part in _place(lora) if part)
    return Reference(*_place(_needed(node, "model")), lora=lora_place, line=node.line)


def _place(node: Node) -> tuple[str, str | None]:
    if isinstance(node.value, dict):
        revision = node.get("revision")
        return _needed(node, "path").text(), revision.text() if revision else None
    path, _, revision = node.text().partition("@")
    return path, revision or None


def _dtype(node: Node | None) -> str | None:
    if node is None:
        return None
    name = node.text().removeprefix("torch.")
    if name not in DTYPES:
        raise node.error(unknown("dtype", name, DTYPES).rstrip("."))
    return name
