"""The coefficients of evomerge that a merge YAML stands for, tensor by tensor.

In: a `Document`, the method, and the place of every tensor. Out: the method as a recipe has it, and its coefficients.
mergekit counts shares of elements otherwise (int(share · n), of the largest at least one), so densities are written
such that evomerge keeps as many. What mergekit scales by `lambda` afterwards is the method's own `scale`, if it has one
and all tensors the same; else it goes into the weights, which a sum is linear in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.recipes.mergekit.document import Document, Reference, Settings
from evomerge.recipes.mergekit.evaluate import flag, number, resolve
from evomerge.recipes.mergekit.methods import Peer
from evomerge.recipes.mergekit.nodes import Node
from evomerge.recipes.mergekit.plan import Place
from evomerge.space.named import Coefficients

Values = dict[str, dict[str, dict[str, float]]]
"""{variable: {parameter: {expert: number}}}."""
FLAGS = ("normalize", "rescale", "int8_mask", "nuslerp_row_wise", "nuslerp_flatten", "filter_wise", "normalize_weights")
DRAWN = (
    "elements are dropped at random, and evomerge draws other ones than mergekit, whose draws depend on the order in "
    "which it comes to tensors; what is kept is divided by its chance, where mergekit restores the sum of magnitudes"
)
TIED = (
    "where elements of a task vector are equal in magnitude and some of them are trimmed, mergekit keeps any of them, "
    "and evomerge the first"
)


@dataclass(frozen=True)
class Read:
    """What a YAML says of a merge.

    Attributes:
        method: as a recipe has it.
        values: the coefficients, by variable, parameter and expert.
        transform: what is done to task vectors before, as a recipe has it.
    """

    method: dict[str, Any]
    values: Values
    transform: list[dict[str, Any]] = field(default_factory=list)


class Reader:
    """Resolves the settings of a YAML.

    Args:
        document: the YAML.
        peer: its method.
        experts: name -> which model.
        plan: parameter -> its place.
        shapes: parameter -> shape.
    """

    def __init__(
        self,
        document: Document,
        peer: Peer,
        experts: Mapping[str, Reference],
        plan: Mapping[str, Place],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._document, self._peer, self._experts, self._plan = document, peer, experts, plan
        self._sizes = {name: math.prod(shape) for name, shape in shapes.items() if math.prod(shape)}
        self._where: dict[str, Node] = {}

    def read(self) -> Read:
        """Return the method and its coefficients.

        Raises:
            ConfigError: a setting is missing, of the wrong kind, or cannot be honoured; the message names the line.
        """
        self._name_strangers()
        if self._peer.name == "slerp":
            (expert,) = self._experts
            places = self._shared("t")
            return Read({"name": "slerp"}, {"weight": {name: {expert: value} for name, value in places.items()}})
        if self._peer.transform:
            return Read({"name": "linear"}, {"weight": self._ones()}, [self._transform()])
        if self._peer.name == "karcher":
            steps, tolerance = int(self._constant("max_iter")), float(self._constant("tol"))
            method = {"name": "karcher", "steps": steps, "tolerance": tolerance}
            return Read(method, {"weight": self._ones()})
        weights = self._each("weight")
        if self._peer.name == "nuslerp":
            return Read(self._nuslerp(), {"weight": weights})
        if self._peer.name == "multislerp":
            return Read(self._multislerp(), {"weight": weights})
        if self._peer.name == "linear":
            return Read({"name": "average"}, {"weight": self._averaged(weights)})
        return self._summed(weights)

    def _transform(self) -> dict[str, Any]:
        """Return the transform that makes rows which are added with weights of 1."""
        if self._peer.name == "sce":
            share = min(float(self._constant("select_topk")), 1.0)
            if share <= 0:
                raise self._error("select_topk", "nothing is selected, so the base is all that is left: write a share")
            return {"name": "sce", "density": share}
        if self._constant("filter_wise"):
            raise self._error("filter_wise", "evomerge takes the angles of whole tensors: write filter_wise: false")
        return {"name": "model_stock"}

    def _nuslerp(self) -> dict[str, Any]:
        if self._constant("nuslerp_row_wise") or not self._constant("nuslerp_flatten"):
            raise self._error(
                "nuslerp_row_wise" if self._constant("nuslerp_row_wise") else "nuslerp_flatten",
                "evomerge goes along the great circle of whole tensors, not of their rows: write nuslerp_flatten: true "
                "and nuslerp_row_wise: false",
            )
        return {"name": "nuslerp", "deltas": self._document.base is not None}

    def _multislerp(self) -> dict[str, Any]:
        if not self._constant("normalize_weights"):
            raise self._error(
                "normalize_weights",
                "evomerge takes shares of the sum of all weights: write normalize_weights: true, which is the default",
            )
        if self._constant("eps") != self._peer.shared["eps"]:
            raise self._error("eps", f"evomerge has an eps of {self._peer.shared['eps']:g}: leave it out")
        return {"name": "multislerp", "deltas": self._document.base is not None}

    def _ones(self) -> dict[str, dict[str, float]]:
        """Return a weight of 1 for each model that a tensor has."""
        return {
            name: {one: float(self._plan[name].part.source(model) is not None) for one, model in self._experts.items()}
            for name in self._sizes
        }

    def _averaged(self, weights: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Return the weights, if they are shares of a whole."""
        if not self._constant("normalize"):
            for name, row in weights.items():
                if abs((total := sum(row.values())) - 1) > 1e-6:
                    raise self._error(
                        "normalize",
                        f"without normalize, the weights of {name} sum to {total:g}, so the model would be scaled by "
                        f"that. evomerge averages: write normalize: true, or weights that sum to 1",
                    )
        return weights

    def _summed(self, weights: dict[str, dict[str, float]]) -> Read:
        """Return a sum of task vectors."""
        peer, normalize = self._peer, bool(self._constant("normalize"))
        elects = peer.own.get("elect") == "sum"
        method: dict[str, Any] = {"name": peer.method, **(peer.own if peer.method in ("breadcrumbs", "della") else {})}
        scales = self._shared("lambda")
        one = len(set(scales.values())) == 1
        if normalize and elects and not one:
            raise self._error(
                "lambda",
                f"{peer.name} divides by the weights of the experts that agree, which differ from element to element, "
                f"and evomerge has one scale after that for all tensors: write one lambda, without filters",
            )
        if peer.method != "linear" and one:
            method |= {"scale": next(iter(scales.values()))}
        elif any(scale != 1 for scale in scales.values()):
            weights = {name: _scaled(row, scales[name], normalize) for name, row in weights.items()}
            normalize = False
        if peer.method == "linear":
            if not normalize:
                return Read(method, {"weight": weights})
            whole = {name: dict.fromkeys(row, 1.0) for name, row in weights.items()}
            return Read({"name": "dare", "normalize": True}, {"weight": weights, "density": whole})
        given = self._each("density")
        density = {name: {one: self._kept(name, value) for one, value in row.items()} for name, row in given.items()}
        thinned = any(0 < value < 1 for row in density.values() for value in row.values())
        method |= {"normalize": normalize}
        self._rescale(method, thinned)
        for share in ("gamma", "epsilon"):
            if share in peer.each:
                method |= {share: self._one_for_all(share)}
        if thinned:
            self._document.notes.add(None, DRAWN if peer.drawn else TIED)
        return Read(method, {"weight": weights, "density": density})

    def _rescale(self, method: dict[str, Any], thinned: bool) -> None:
        rescale = bool(self._constant("rescale"))
        if self._peer.drawn:
            method |= {"rescale": rescale}
        elif rescale and thinned:
            raise self._error(
                "rescale",
                f"mergekit scales what {self._peer.name} keeps to the sum of magnitudes of all; evomerge trims and "
                f"does not scale: leave rescale out, or write larger weights",
            )

    def _kept(self, name: str, share: float) -> float:
        """Return the density with which evomerge keeps as many elements of a parameter as mergekit does."""
        if share >= 1 or share <= 0 or self._peer.drawn:
            return min(max(share, 0.0), 1.0)
        size, least = self._sizes[name], int(self._peer.method == "ties")
        count = max(least, int(share * size))
        return share if math.floor(share * size + 1e-9) == count else (count + 0.5) / size if count else 0.0

    def _one_for_all(self, name: str) -> float:
        """Return a setting of each model that evomerge has one of."""
        values = {value for row in self._each(name).values() for value in row.values()}
        if len(values) > 1:
            raise self._error(name, f"evomerge has one {name} for all models and tensors: write it once, above")
        return values.pop()

    def _constant(self, name: str) -> Any:
        """Return a setting of all models that evomerge has one of for all tensors."""
        values = set(self._shared(name).values())
        if len(values) > 1:
            raise self._error(name, f"evomerge has one {name} for all tensors: write one value, without filters")
        return values.pop()

    def _shared(self, name: str) -> dict[str, Any]:
        """Return a setting of all models, by parameter."""
        return {
            one: self._resolved(name, place, place.scopes(self._document), self._peer.shared[name])
            for one, place in ((one, self._plan[one]) for one in self._sizes)
        }

    def _each(self, name: str) -> dict[str, dict[str, float]]:
        """Return a setting of each model, by parameter and expert; 0 where a slice is made without a model."""
        found = {}
        for one in self._sizes:
            place = self._plan[one]
            row = {}
            for expert, model in self._experts.items():
                source = place.part.source(model)
                scopes = () if source is None else place.scopes(self._document, source)
                default = self._peer.each[name]
                row[expert] = 0.0 if source is None else self._resolved(name, place, scopes, default, model)
            found[one] = row
        return found

    def _resolved(self, name: str, place: Place, scopes: Any, default: Any, model: Reference | None = None) -> Any:
        kind: Callable[[Node], Any] = flag if name in FLAGS else number
        if found := resolve(name, scopes, place.names, place.t, kind):
            value, self._where[name] = found
            return value
        if default is None:
            at = model.line if model else self._document.method.line
            whose = f"{model} has no {name}" if model else f"there is no {name}"
            raise ConfigError(
                f"line {at}: {whose} for the tensor {place.names[0]}, and {self._peer.name} needs it: write it under "
                f"`parameters`."
            )
        return default

    def _error(self, name: str, what: str) -> ConfigError:
        return self._where.get(name, self._document.method).error(what)

    def _name_strangers(self) -> None:
        """Say which settings have no effect, as they have none in mergekit."""
        document, known = self._document, {*self._peer.shared, *self._peer.each}
        every: list[Settings] = [*document.scopes, *(part.settings for part in document.slices)]
        every += [source.settings for part in document.slices for source in part.sources]
        for settings in every:
            document.notes.unread(Node(dict(settings), 0), known, f"the method {self._peer.name}")
        base = None if self._peer.base == "listed" else document.base
        for part in document.slices:
            source = part.source(base) if base else None
            if source and source.settings:
                document.notes.add(next(iter(source.settings.values())), "settings of the base have no effect")


def _scaled(row: Mapping[str, float], scale: float, normalize: bool) -> dict[str, float]:
    """Return weights with what their sum is multiplied by, and divided by, in them."""
    total = sum(row.values()) if normalize else 1.0
    return {one: value * scale / (total if abs(total) >= 1e-8 else 1.0) for one, value in row.items()}


def fewest_groups(values: Values, groups: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Return the coarsest granularity of which all parameters of a group have the same numbers.

    Args:
        values: the coefficients.
        groups: granularity -> parameters of each group, the coarsest first; the last fits always.
    """
    for granularity, members in groups.items():
        if all(rows[one] == rows[names[0]] for rows in values.values() for names in members for one in names):
            return granularity
    return list(groups)[-1]


def by_group(values: Values, members: Mapping[str, str]) -> Coefficients:
    """Return coefficients by group.

    Args:
        values: the coefficients.
        members: group -> one of its parameters.
    """
    return {variable: {group: rows[one] for group, one in members.items()} for variable, rows in values.items()}
