"""A candidate by hand: the live model of a family, and whatever merge of it somebody wants to look at.

In: a `Family`, a space and a method, by their names. Out: a `Candidate`, which puts constants, points, coefficients and
recipes into the live model, and takes gradients of a loss there. Searches write into the same live model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.common.forms import checked
from evomerge.common.names import unknown
from evomerge.common.progress import WRITTEN, Progress, Silent
from evomerge.inspection.family import Family
from evomerge.models.buffers import BASE
from evomerge.models.templates import BASE as TEMPLATE
from evomerge.recipes.buffers import put_statistics, statistics_of
from evomerge.recipes.catalog import make_chain, make_method
from evomerge.recipes.origins import find_origins
from evomerge.recipes.reading import read_merge
from evomerge.recipes.recipe import Recipe
from evomerge.runs.choices import Choice, load_choice, settings_of
from evomerge.runs.config import build, check_method
from evomerge.runs.given import make_merge
from evomerge.runs.transforms import in_order
from evomerge.space.coefficients import CoefficientSpace
from evomerge.task_vectors.stores import AUTO, kept_as


class Candidate:
    """The live model of a family, which any merge of it can be put into.

    Args:
        family: base and experts.
        space: which coefficients there are: model, blocks:n, layer, module, modules:n, tensor, chunk:n
            or line.
        method: how models are combined: linear, ties, dare, dare_ties, della, breadcrumbs, slerp, nuslerp,
            multislerp, karcher, average; or its
            settings.
        transform: what is done to the task vectors before: a name, such as ties, or a list of names and of
            {name: settings}, in order.
        sharing: `shared` for one coefficient for all experts of a group.
        frozen: pattern -> value at which coefficients are held.
        tied: patterns, or {pattern: factor}, each of which makes one coordinate.
        bounds: variable -> (low, high).
        only: patterns of the coefficients that are searched; other weights are held at 0.4, if not by `frozen`.
        sum: what the weights of each group sum to; points are of amounts then, of which weights are made.
        map: `tanh` for weights between -1 and 1, of amounts as well.
        masks: patterns of the rows whose weights are either on or off, by further coordinates.
        progress: is told what goes on.

    Attributes:
        family: the same.
        model: the live model.
        space: the coefficient space: `dim`, `names`, `low`, `high`, `decode`, `start`.
    """

    @checked(
        family="a Family",
        space="'layer'",
        method="'linear'",
        transform="'ties', ['ties'], [{'ties': {'density': 0.2}}] or None",
        sharing="'separate' or 'shared'",
        frozen="{'weight/*/mood': 0.4}",
        tied="['weight/*/mood']",
        bounds="{'weight': (0, 1.5)}",
        only="['weight/*.attention/*']",
        sum="1.0",
        map="'tanh' or None",
        masks="['*.*']",
        progress=WRITTEN,
    )
    def __init__(
        self,
        family: Family,
        space: str = "layer",
        method: str | Choice | Mapping[str, Any] = "linear",
        *,
        transform: str | Sequence[Any] | Mapping[str, Any] | None = None,
        sharing: str = "separate",
        frozen: Mapping[str, float] | None = None,
        tied: Sequence[str | Mapping[str, float]] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
        only: Sequence[str] | None = None,
        sum: float | None = None,
        map: str | None = None,
        masks: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        for name, pair in (bounds or {}).items():
            if len(pair) != 2:
                raise ConfigError(f"bounds: {name} has {pair}: write (low, high), as in {{'weight': (0, 1.5)}}.")
        given = {"sharing": sharing, "frozen": frozen and dict(frozen), "tied": tied and [*tied]}
        given |= {"bounds": bounds and {name: [*pair] for name, pair in bounds.items()}, "only": only and [*only]}
        given |= {"sum": sum, "map": map, "masks": masks and [*masks]}
        chain = transform if transform is None or isinstance(transform, str | Mapping) else [*transform]
        settings = in_order({"method": settings_of("method", method), "transform": chain})
        settings["space"] = load_choice("space", space, given)
        check_method(settings["method"], settings["transform"])
        self.family = family
        self.merge = make_merge(family.opened, build(settings["method"], "method"), settings, progress or Silent())
        self.model: Any = family.opened.live.model
        self.space: CoefficientSpace = self.merge.space
        self._point = self.space.nearest({})

    @classmethod
    @checked(
        path="'their.yml' or 'runs/mine/recipe.yaml'",
        bounds="{'weight': (0, 1.5)}",
        device="'auto', 'cpu' or 'cuda:0'",
        compute="'auto', 'float32' or None",
        cache="a directory, or None",
        progress=WRITTEN,
    )
    def read(
        cls,
        path: str | Path,
        *,
        bounds: Mapping[str, Sequence[float]] | None = None,
        device: str = "auto",
        compute: str | None = "auto",
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Candidate:
        """Open the models of a merge YAML of mergekit's, or of a recipe, with its merge in the live model. A search
        that is to begin there is given the same path as `start`, with bounds that hold its numbers.

        Args:
            path: of the file; its models are looked for from the working directory, then from its own.
            bounds: variable -> (low, high).
            device: as `Family` has it, like `compute` and `cache`.
            progress: is told what goes on.

        Returns:
            The candidate; `family.notes` says what is done otherwise than the file says.

        Raises:
            EvomergeError: the file is neither, cannot be honoured, or its models are not there.

        >>> import evomerge as em
        >>> candidate = em.Candidate.read("their.yml")
        >>> candidate.family.experts
        ['mood', 'topic']
        >>> result = em.search(candidate, "fitness.py:score", {"mood": "mood.jsonl"}, start="their.yml", budget=2)
        """
        progress, beside = progress or Silent(), Path(path).parent
        told = read_merge(Path(path), progress)
        recipe = told.recipe
        places = find_origins(recipe, beside, None, {})
        family = Family(
            places.pop(""),
            places,
            auto_class=recipe.auto_class,
            device=device,
            compute=compute,
            vocabulary=recipe.vocabulary,
            part=recipe.part,
            template=recipe.template or TEMPLATE,
            store=str(recipe.store.get("name", AUTO)),
            buffers=recipe.buffers.get("name", BASE),
            cache=cache,
            progress=progress,
        )
        family.notes += told.notes
        how = Choice("method", recipe.method["name"], _rest(recipe.method))
        chain = [{step["name"]: _rest(step)} for step in recipe.transform]
        found = cls(family, recipe.granularity, how, transform=chain or None, bounds=bounds, progress=progress)
        found.set(recipe)
        if "file" in recipe.buffers:
            put_statistics(found.model, statistics_of(recipe, beside))
        return found

    def set(self, what: float | np.ndarray | Mapping[str, Any] | Recipe | str | Path) -> Any:
        """Put a merge into the live model, and return the model.

        Args:
            what: a number, the weight of all experts everywhere; {expert: weight}; a point of the space, (dim,); the
                coefficients {variable: (G, K)}; a recipe of these models, this method and these transforms, or the path
                of one, or of a merge YAML of mergekit's.

        Raises:
            EvomergeError: it is none of these, or not of this candidate.
        """
        if isinstance(what, str | Path):
            what = read_merge(Path(what), Silent()).recipe
        if isinstance(what, Recipe):
            self._check_recipe(what)
            known = what.on_groups(self.space.groups, self.space.rows, self.family.opened.parameters)
            coefficients: Mapping[str, Any] = known
        elif isinstance(what, Mapping):
            coefficients = self._named({str(name): _numbers(values) for name, values in what.items()})
        else:
            values = _numbers(what)
            coefficients = self.space.constant(float(values)) if values.ndim == 0 else self.space.decode(values)
        complete = self.space.complete(coefficients)
        self._point = self.space.nearest(complete)
        self.merge.merger.apply(complete)
        return self.model

    def apply(self, x: np.ndarray) -> Any:
        """Put the candidate of a point, (dim,), into the live model, and return the model."""
        self._point = _numbers(x)
        self.merge.merger.apply(self.space.decode(self._point))
        return self.model

    def base(self) -> Any:
        """Put the base back, bit for bit, and return the model."""
        self.merge.merger.restore()
        return self.model

    @checked(loss="a function of the model, such as lambda model: model(batch).square().mean()")
    def gradient(self, loss: Callable[[Any], Tensor | Iterable[Tensor]]) -> np.ndarray:
        """Return the gradient of a loss with respect to the point whose candidate is in the live model, (dim,).

        Args:
            loss: is called with the live model, and returns a scalar, or yields several, each of which is walked
                backward before the next is made: their gradients are added up.

        Raises:
            ConfigError: it is no function, or gives something without a gradient.
        """

        def losses() -> Iterable[Tensor]:
            found = loss(self.model)
            for one in (found,) if isinstance(found, Tensor) or not isinstance(found, Iterable) else found:
                if not (isinstance(one, Tensor) and one.requires_grad and one.numel() == 1):
                    raise ConfigError(
                        f"The loss gave {one!r:.100}, which has no gradient: return a scalar tensor that was computed "
                        f"from the model, outside of torch.no_grad(), or yield several."
                    )
                yield one

        gradients = self.merge.merger.gradient(losses(), self.space.moves("weight"))
        return self.space.pullback(gradients, self._point)

    def _named(self, given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the coefficients of weights by row, or of values by variable."""
        rows, variables = list(self.space.rows), [variable.name for variable in self.space.variables]
        if stranger := [name for name in given if name not in rows and name not in variables]:
            raise ConfigError(unknown("expert or variable", stranger[0], [*rows, *variables]))
        if not set(given) <= set(rows):
            return given
        for name, values in given.items():
            if values.ndim:
                raise ConfigError(f"The weight of {name} has shape {values.shape}: write one number for each expert.")
        return self.space.constant(np.array([float(given.get(name, np.zeros(()))) for name in rows]))

    def _check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe whose coefficients would make another model here than they did.

        Raises:
            ConfigError: it is of other models, another method, other transforms or other rows.
        """
        opened, merge = self.family.opened, self.merge
        found = {"the base": (recipe.base, opened.base)}
        for name in opened.experts:
            if name not in recipe.experts:
                raise ConfigError(f"The recipe is of other experts: {unknown('expert', name, list(recipe.experts))}")
            found[f"the expert {name}"] = (recipe.experts[name], opened.experts[name])
        for who, (source, own) in found.items():
            if source.sha256 and source.sha256 != own.sha256:
                raise ConfigError(
                    f"The recipe is of other models: {who} of it ({source.path}) has other weights than that of this "
                    f"candidate ({own.path}). Make the family of the models of the recipe."
                )
        method, chain = make_method(recipe), make_chain(recipe, opened.parameters)
        if type(method) is not type(merge.method) or vars(method) != vars(merge.method):
            raise ConfigError(
                f"The recipe merges by {recipe.method}, and this candidate does not: make a candidate with "
                f"method={method.name!r} and the same settings."
            )
        steps, own_steps = ([step.about() for step in one] for one in (chain, merge.transforms))
        if steps != own_steps:
            raise ConfigError(
                f"The recipe transforms task vectors by {steps or 'nothing'}, and this candidate by "
                f"{own_steps or 'nothing'}: make a candidate with the same transform=."
            )
        if recipe.kept_as != (own := kept_as(opened.settings.get("store", AUTO))):
            raise ConfigError(
                f"The recipe is of task vectors in {recipe.kept_as}, and this candidate's are in {own}: make a family "
                f"with store={recipe.kept_as!r}."
            )
        if sorted(recipe.row_names) != sorted(self.space.rows):
            raise ConfigError(
                f"The recipe has coefficients of {', '.join(recipe.row_names)}, and this candidate of "
                f"{', '.join(self.space.rows)}: make a family of the same experts."
            )


def _rest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method or a transform of a recipe, without its name."""
    return {name: value for name, value in named.items() if name != "name"}


def _numbers(given: Any) -> np.ndarray:
    """Return numbers as an array.

    Raises:
        ConfigError: they are none.
    """
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{given!r:.100} cannot be put into the model: give a number, {{expert: weight}}, a point, coefficients "
            f"{{variable: numbers}}, a recipe or the path of one."
        ) from error
