"""The recipe: everything needed to rebuild a merged model, as one small YAML file that people can read and edit.

In: a winner's coefficients by variable, group and expert, with the sources that they belong to. Out: YAML and back,
every float exactly as it was; and the same coefficients on other groups, from which a search of another granularity can
start. A recipe never instantiates anything; what it does not know it refuses, by name.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge import __version__
from evomerge.common.errors import ConfigError
from evomerge.common.names import DTYPES, unknown
from evomerge.models.buffers import check_buffers
from evomerge.models.vocabulary import CHOICES, REFUSE
from evomerge.recipes.plain import Dumper, Loader, check_keys, checked_mapping, checked_number, plain_data
from evomerge.space.groups import Group, make_groups
from evomerge.space.named import Coefficients, array_coefficients
from evomerge.task_vectors.stores import FLOAT32, LOSSY
from evomerge.transforms.earlier import completed

FORMAT = 1
KEYS = {"format": int, "version": str, "base": dict, "experts": dict, "method": dict, "granularity": str}
KEYS |= {"coefficients": dict, "scores": dict, "heads": dict, "auto_class": str, "vocabulary": str}
"""The keys of every recipe, and the type of each."""
OPTIONAL = {"part": str, "union": str, "dtype": str, "compute": str, "transform": list, "rows": list, "store": dict}
OPTIONAL |= {"buffers": dict, "template": str}
"""Those that only some recipes have."""


@dataclass(frozen=True)
class Source:
    """A model directory and the hash of its weights.

    Attributes:
        path: the directory.
        sha256: of its weights.
        hub: `owner/name@commit`, where it came from the hub.
        dequantised: the quantised model that the directory was made of, as numbers: its directory, or its name there.
    """

    path: str
    sha256: str
    hub: str | None = None
    dequantised: str | None = None

    @property
    def place(self) -> str:
        """The directory if it is there, else the name on the hub or the quantised model, if it has one."""
        other = self.hub or self.dequantised
        return other if other and not Path(self.path).exists() else self.path


@dataclass(frozen=True)
class Recipe:
    """How a merged model is built.

    Attributes:
        base: Where θ₀ is.
        experts: Name -> where the expert is, in the order of the coefficients.
        method: `name` and the method's settings.
        transform: What was done to the task vectors before the search, in order: `name`, settings, and `only`, the
            parameters that it is for, where that is not all of them.
        rows: The names of the rows that the coefficients are for, where these are not the experts.
        store: How task vectors were kept, where that is not exact: `name` (`model.store`); and `bound`, group -> how
            far a parameter may be from that of the merge of exact ones, before it is rounded, if the method has one.
        auto_class: The transformers class whose parameters the groups are made of: AutoModel, AutoModelForCausalLM ...
        granularity: Which groups there are: `layer`, `blocks:4`, ... (see `make_groups`).
        coefficients: Variable -> group -> row -> value, for every group and every row.
        scores: What the model reached, by split and task.
        heads: Task -> path of its head, relative to the recipe.
        vocabulary: What became of experts with another number of tokens than the base (`model.vocabulary`).
        part: The module of the base that experts of another architecture are (`model.part`); None where there is none.
        union: A hash of the vocabulary of base and experts (`model.vocabulary=union`).
        dtype: To which the weights are rounded; None in recipes up to 0.2: that in which transformers loads the base.
        template: The expert whose chat template, end token and generation config the merge has; None for the base's.
        buffers: What the merge has of floating buffers, where these are not the base's: `name` (`model.buffers`); and
            for recalibrate `file`, where they are, relative to the recipe, and its `sha256`.
        compute: In which the model was scored, where that is another; it holds the same weights.
        version: The evomerge that wrote it.

    Raises:
        ConfigError: something is missing, of the wrong kind, or not finite.
    """

    base: Source
    experts: dict[str, Source]
    method: dict[str, Any]
    granularity: str
    coefficients: Coefficients
    scores: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    auto_class: str = "AutoModel"
    vocabulary: str = REFUSE
    part: str | None = None
    union: str | None = None
    dtype: str | None = None
    compute: str | None = None
    version: str = __version__
    transform: list[dict[str, Any]] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    template: str | None = None

    def __post_init__(self) -> None:
        if self.vocabulary not in CHOICES:
            raise ConfigError(f"recipe: {unknown('vocabulary', self.vocabulary, CHOICES)}")
        for dtype in (self.dtype, self.compute):
            if dtype not in (None, *DTYPES):
                raise ConfigError(f"recipe: {unknown('dtype', dtype, DTYPES)}")
        if not isinstance(self.method.get("name"), str):
            raise ConfigError("recipe: method needs a name, such as {name: linear}.")
        if not all(isinstance(step, dict) and isinstance(step.get("name"), str) for step in self.transform):
            raise ConfigError("recipe: transform must be a list, and each of it needs a name, such as {name: ties}.")
        if not all(isinstance(row, str) for row in self.rows) or len(set(self.rows)) < len(self.rows):
            raise ConfigError(f"recipe: rows must be names, each once, not {self.rows}.")
        if self.store and self.store.get("name") not in LOSSY:
            raise ConfigError(f"recipe: store.name: {unknown('choice', str(self.store.get('name')), LOSSY)}")
        check_buffers(self.buffers)
        if self.template is not None and self.template not in self.experts:
            raise ConfigError(f"recipe: template: {unknown('expert', str(self.template), self.experts)}")
        if not self.experts or not self.coefficients:
            raise ConfigError("recipe: it needs at least one expert and the coefficients of at least one variable.")
        groups = next(iter(self.coefficients.values()))
        if "bound" in self.store:
            check_keys(self.store["bound"], groups, "store.bound", "group")
            for group, value in self.store["bound"].items():
                checked_number(value, f"store.bound.{group}")
        for variable, rows in self.coefficients.items():
            check_keys(rows, groups, f"coefficients.{variable}", "group")
            for group, row in rows.items():
                where, kind = f"coefficients.{variable}.{group}", "row" if self.rows else "expert"
                check_keys(row, dict.fromkeys(self.row_names), where, kind)
                for name, value in row.items():
                    checked_number(value, f"{where}.{name}")

    @property
    def row_names(self) -> list[str]:
        """The names of the rows that the coefficients are for, in order: the experts, unless it says otherwise."""
        return list(self.rows or self.experts)

    @property
    def thinned(self) -> bool:
        """Whether some density is below 1."""
        return any(value < 1 for row in self.coefficients.get("density", {}).values() for value in row.values())

    @property
    def kept_as(self) -> str:
        """How the task vectors were kept: one of `LOSSY`, or float32 where nothing was lost."""
        return str(self.store.get("name", FLOAT32))

    @property
    def bound(self) -> float | None:
        """How far a parameter may be from that of the merge of exact task vectors; None where nobody knows."""
        return max(self.store["bound"].values()) if "bound" in self.store else None if self.store else 0.0

    def to_yaml(self) -> str:
        """The recipe as YAML, one line per group, in the order in which it was made; what is as usual is left out."""
        data = dataclasses.asdict(self)
        for source in (data["base"], *data["experts"].values()):
            for key in ("hub", "dequantised"):
                if source[key] is None:
                    del source[key]
        usual: dict[str, Any] = {
            "vocabulary": REFUSE,
            **dict.fromkeys(("part", "union", "dtype", "compute", "template")),
        }
        usual |= {"transform": [], "rows": [], "store": {}, "buffers": {}}
        ordered = dict.fromkeys(("base", "experts", "method", "transform", "rows", "store", *data))
        data = {key: data[key] for key in ordered if key not in usual or data[key] != usual[key]}
        return yaml.dump(
            {"format": FORMAT, **plain_data(data, "")},
            Dumper=Dumper,
            sort_keys=False,
            default_flow_style=None,
            width=math.inf,
        )

    @classmethod
    def from_yaml(cls, text: str) -> "Recipe":
        """Read a recipe.

        Raises:
            ConfigError: not YAML, a key that is unknown, missing or written twice, or a value of the wrong kind; the
                message names the key.
        """
        try:
            data = yaml.load(text, Loader=Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"recipe: this is not valid YAML: {error}") from error
        data = _known(data)
        experts = {name: _source(value, f"experts.{name}") for name, value in data["experts"].items()}
        return cls(
            base=_source(data["base"], "base"),
            experts=experts,
            coefficients=_coefficients(data["coefficients"]),
            heads=checked_mapping(data["heads"], dict.fromkeys(data["heads"], str), "heads"),
            part=data.get("part"),
            union=data.get("union"),
            dtype=data.get("dtype"),
            compute=data.get("compute"),
            template=data.get("template"),
            transform=[completed(step) if isinstance(step, dict) else step for step in data.get("transform", [])],
            rows=data.get("rows", []),
            store=_store(data.get("store", {})),
            buffers=checked_mapping(one := data.get("buffers", {}), dict.fromkeys(one, str), "buffers"),
            **{key: data[key] for key in ("method", "granularity", "scores", "auto_class", "vocabulary", "version")},
        )

    def on_groups(
        self, groups: Sequence[Group], names: Sequence[str], parameters: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """The coefficients on other groups, each the mean over its elements; its own ones on the recipe's own groups.

        Args:
            groups: G groups over the same parameters.
            names: K names of rows, all of them in the recipe.
            parameters: name -> shape, in the order of the live model.

        Returns:
            {variable: float64 (G, K)}, what `CoefficientSpace.start` takes.

        Raises:
            ConfigError: the recipe belongs to another model or has no such row.
        """
        for name in names:
            if name not in self.row_names:
                raise ConfigError(f"recipe: {unknown('row' if self.rows else 'expert', name, self.row_names)}")
        own = self.groups(parameters)
        spans: dict[str, list[tuple[int, int, int]]] = {}
        for row, group in enumerate(own):
            for span in group.spans:
                spans.setdefault(span.parameter, []).append((span.start, span.stop, row))
        common: Counter[tuple[int, int]] = Counter()  # (group, own group) -> elements in both
        for place, group in enumerate(groups):
            for span in group.spans:
                for start, stop, row in spans[span.parameter]:
                    if (overlap := min(stop, span.stop) - max(start, span.start)) > 0:
                        common[place, row] += overlap
        sizes = [sum(span.stop - span.start for span in group.spans) for group in groups]
        from scipy import sparse  # only here: who reads or writes a recipe does not wait for it

        shares = sparse.csr_array(
            ([overlap / sizes[place] for (place, _), overlap in common.items()], tuple(np.array(list(common)).T)),
            shape=(len(groups), len(own)),
        )
        arrays = array_coefficients(self.coefficients, own, names)
        return {variable: shares @ values for variable, values in arrays.items()}

    def per_parameter(self, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, dict[str, float]]]:
        """The coefficients by variable, row and parameter, each the mean over the parameter's elements."""
        groups, rows = make_groups("tensor", parameters), self.row_names
        return {
            variable: {
                row: {group.name: float(values[g, k]) for g, group in enumerate(groups)} for k, row in enumerate(rows)
            }
            for variable, values in self.on_groups(groups, rows, parameters).items()
        }

    def groups(self, parameters: Mapping[str, tuple[int, ...]]) -> tuple[Group, ...]:
        """The groups that the recipe's coefficients are for.

        Raises:
            ConfigError: a model with these parameters has other groups.
        """
        groups = make_groups(self.granularity, parameters)
        wanted = dict.fromkeys(group.name for group in groups)
        for variable, rows in self.coefficients.items():
            check_keys(rows, wanted, f"coefficients.{variable}", "group")
        return groups


def _known(data: Any) -> dict[str, Any]:
    """Return what was read as a mapping with the keys of a recipe.

    Raises:
        ConfigError: it is none, of another format, or a YAML for mergekit.
    """
    if isinstance(data, dict) and "merge_method" in data:
        raise ConfigError(
            "recipe: this is a YAML for mergekit, which `evomerge merge` merges, and with which start= begins a "
            "search: name a recipe.yaml instead, as `evomerge search` and `evomerge export` write it, or the "
            "directory of what was merged."
        )
    if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
        raise ConfigError(
            f"recipe: this is format {data['format']}, and evomerge {__version__} reads format {FORMAT}. "
            f"It was written by evomerge {data.get('version')}: install that one."
        )
    if isinstance(data, dict):  # the first recipes did not say two of them
        data = _lifted({"auto_class": "AutoModel", "vocabulary": REFUSE, **data})
    there = {key: kind for key, kind in OPTIONAL.items() if isinstance(data, dict) and key in data}
    return checked_mapping(data, KEYS | there, "")


def _lifted(data: dict[str, Any]) -> dict[str, Any]:
    """The same with the transform beside the method; version 0.2 wrote it inside."""
    method = data.get("method")
    if not isinstance(method, dict) or "transform" not in method:
        return data
    if "transform" in data:
        raise ConfigError("recipe: transform stands beside the method and in it as well: leave out that in the method.")
    rest = {name: value for name, value in method.items() if name != "transform"}
    return {**data, "method": rest, "transform": [method["transform"]] if method["transform"] else []}


def _store(data: dict[str, Any]) -> dict[str, Any]:
    if not data:
        return {}
    return checked_mapping(data, {"name": str, **({"bound": dict} if "bound" in data else {})}, "store")


def _source(data: Any, where: str) -> Source:
    more = {key: str for key in ("hub", "dequantised") if isinstance(data, dict) and key in data}
    return Source(**checked_mapping(data, {"path": str, "sha256": str, **more}, where))


def _coefficients(data: dict[str, Any]) -> Coefficients:
    """The same numbers as floats (a person may write 0 for 0.0)."""
    found: Coefficients = {}
    for variable, rows in data.items():
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise ConfigError(f"recipe: coefficients.{variable} must map groups to mappings of experts to numbers.")
        found[variable] = {
            group: {
                expert: checked_number(value, f"coefficients.{variable}.{group}.{expert}")
                for expert, value in row.items()
            }
            for group, row in rows.items()
        }
    return found
