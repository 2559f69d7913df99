"""Models scored side by side: recipes, model directories, constants, the base, experts, on the items of one split.

In: a problem, and models by the names that people give them. Out: the mean score of each with its
standard error, and the paired difference of each to the first; of a model that has no score, the reason. All are scored
on the same items, those on which a search judges its finalists (`judge.py`), and outcomes are remembered under the same
names: what a search has scored on all items of the split is not scored again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from evomerge.common.errors import CommandError, ConfigError, EvomergeError, MergeError, NotFinite
from evomerge.common.limits import TimeLimit
from evomerge.common.names import dtype_name, nearest, unknown
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import check_items, measures
from evomerge.fitness.objectives import task_weights
from evomerge.models.adapter_files import is_adapter
from evomerge.models.hub import find_directory, is_name
from evomerge.problem import Problem, without_compute
from evomerge.search.evaluators.serial import check_finite
from evomerge.search.evaluators.splits import (
    Scoring,
    in_checkpoints_dtype,
    live_fitness,
    make_subsets,
    score_experts,
)
from evomerge.selection.contenders import Contender, in_place, of_directory, of_recipe, of_soup
from evomerge.selection.marks import Marks, marks_of
from evomerge.selection.remember import remembered
from evomerge.selection.statistics import Paired, Score, paired, score_of
from evomerge.space.named import name_coefficients
from evomerge.trials import finite

WITHOUT = "without:"  # and the name of an expert that a soup leaves out


@dataclass(frozen=True)
class Model:
    """A model as a person names it.

    Attributes:
        kind: what it is; `experts` is each task with its own expert, `expert` one of them on all tasks, `soup` the
            uniform average of all experts, or of all but one.
        value: the name of the expert, or of the one left out; the constant, or the path of recipe or model directory.
    """

    kind: Literal["base", "experts", "expert", "soup", "constant", "recipe", "directory"]
    value: Any = None

    @property
    def choosable(self) -> bool:
        """Whether it is one of those among which people choose, and not what they hold them against."""
        return self.kind in ("soup", "constant", "recipe", "directory")


@dataclass(frozen=True)
class Comparison:
    """Models side by side on the items of one split.

    Attributes:
        split: `search`, `select` or `report`.
        metric: of the scores.
        measures: what the metric is, by task.
        items: how many items there were.
        models: scores by name; without any number for a model that has none.
        paired: each but the first minus the first.
        marks: by name, sentences on what is otherwise than the name says.
        errors: by name, why a model has no score.
    """

    split: str
    metric: str
    measures: Mapping[str, str]
    items: int
    models: Mapping[str, Score]
    paired: Mapping[str, Paired]
    marks: Mapping[str, Sequence[str]]
    errors: Mapping[str, str]

    def to_json(self, **more: Any) -> str:
        """Return it as text, with more beside it; an error stands in the row of its model."""
        content = asdict(self) | more
        for name, error in content.pop("errors").items():
            content["models"][name]["error"] = error
        return json.dumps(finite(content), indent=1, allow_nan=False)


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


def evaluate(
    problem: Problem, models: Mapping[str, Model], split: str, reporter: Progress, limit: TimeLimit | None = None
) -> Comparison:
    """Score models on the items of a split and compare each with the first.

    Every model is found and checked before the first is scored; the base is in the live model afterwards. Where models
    are scored in another dtype than that of the checkpoint, the first is scored in that one as well, and stands last.

    Args:
        problem: what is searched; the live model must hold the base. The metric is that of its report.
        models: by the names that they shall have.
        split: `search`, `select` or `report`.
        reporter: tells the user what goes on.
        limit: of the time of a candidate; a model may take longer by as much as there are more items.

    Raises:
        EvomergeError: a model belongs to another base or architecture, or the fitness refuses items or settings.
    """
    subset = make_subsets(problem)[split]
    ids, metric, weights = subset(0), problem.goal.report_metric, problem.goal.weights
    task_weights(weights, ids)  # one for a task that is not there is refused now
    with reporter.bars():
        contenders = {name: _contender(model, problem, reporter) for name, model in models.items()}
    score, limit = live_fitness(problem, problem.items[split]), limit or TimeLimit()
    timed = partial(limit.first, share=subset.size / (problem.sampling.search or subset.size))
    check_items(problem.fitness, problem.live.model, score.prepared, ids, split)
    outcomes: dict[str, Outcome | str] = {}
    for number, (name, contender) in enumerate(contenders.items(), 1):
        with reporter.working(f"scoring {name} on {subset.size} {split} items ({number} of {len(contenders)})"):
            outcomes[name] = outcome_of(contender, problem, score, ids, metric, timed)
    known = marks_of(problem)
    marks = {name: [*_marks(model, known), *contenders[name].marks] for name, model in models.items()}
    if problem.live.compute:
        (first, contender), own = next(iter(contenders.items())), dtype_name(problem.live.dtype)
        again, name = replace(contender, about=without_compute(contender.about)), f"{first} in {own}"
        with reporter.working(f"scoring {first} once more, in {own}, the dtype of the checkpoint"):
            written = in_checkpoints_dtype(problem.live, score)
            outcomes[name], marks[name] = outcome_of(again, problem, written, ids, metric, timed), marks[first]
    return Comparison(
        split,
        metric,
        measures(problem.fitness, metric, ids),
        subset.size,
        *compare(outcomes, ids, metric, weights),
        {name: texts for name, texts in marks.items() if texts},
        {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)},
    )


def compare(
    outcomes: Mapping[str, Outcome | str], tasks: Collection[str], metric: str, weights: Mapping[str, float] | None
) -> tuple[dict[str, Score], dict[str, Paired]]:
    """Return the score of each model, and of all but the first the paired difference to the first.

    Args:
        outcomes: of each model, on the same items; or the reason why it has no score.
        tasks: all tasks; a model that lacks one has no mean and no difference, since it would be one over fewer tasks.
        metric: which of the fitness.
        weights: of the tasks in the mean; None for equal ones.
    """
    scored = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Outcome)}
    whole = {name: outcome for name, outcome in scored.items() if set(outcome.results) == set(tasks)}
    scores = {name: score_of(outcome, metric, weights) for name, outcome in scored.items()}
    scores |= {name: replace(score, mean=None, se=None) for name, score in scores.items() if name not in whole}
    first, *others = outcomes
    both = {
        name: paired(whole[name], whole[first], metric, weights) for name in others if {name, first} <= whole.keys()
    }
    return (
        {name: scores.get(name, Score(None, None)) for name in outcomes},
        {name: both.get(name, Paired(None, None)) for name in others},
    )


def _contender(model: Model, problem: Problem, reporter: Progress) -> Contender:
    if model.kind == "recipe":
        return of_recipe(model.value, problem)
    if model.kind == "directory":
        return of_directory(model.value, problem, reporter)
    if model.kind == "soup":
        return of_soup(model.value, problem)
    about, space = problem.contents, problem.space
    if model.kind == "experts":
        if not problem.experts:
            raise ConfigError(
                "No task has an expert, so `experts` has no score: write fitness.tasks.<task>.expert=..., or name an "
                "expert, which is then scored on all tasks."
            )
        return Contender({"model": {"experts": problem.experts}, **about}, partial(score_experts, problem))
    if model.kind == "constant":
        coefficients = problem.space.constant(model.value)
        named = name_coefficients(coefficients, space.groups, space.rows)
        return in_place(partial(problem.merger.apply, coefficients), named, about)
    return in_place(partial(problem.become, model.value), {"expert": model.value} if model.value else "base", about)


def _marks(model: Model, marks: Marks) -> list[str]:
    """Return what is otherwise in a row than its name says."""
    match model.kind:
        case "experts":
            return marks.of_experts()
        case "expert":
            return marks.of_expert(model.value)
        case "directory":
            return marks.of_directory(model.value)
    return marks.of_merge()


def outcome_of(
    contender: Contender,
    problem: Problem,
    score: Scoring,
    ids: Mapping[str, list[str]],
    metric: str,
    timed: Callable[[Callable[[], Outcome]], Outcome],
) -> Outcome | str:
    """Return the outcome of a contender, under the name by which `judge.py` remembers it, or the reason why it has no
    score, and put the base back. It is computed within `timed`, which breaks off what takes too long.
    """

    def compute() -> Outcome:
        try:
            return timed(lambda: contender.score(score, ids))
        finally:
            problem.become(None)

    try:
        if problem.fitness.pure:
            description = {**contender.about, "items": ids, **problem.circumstances}
            outcome = remembered(problem.opening.cache, description, compute)
        else:
            outcome = compute()
        check_finite(outcome, metric)
    except (NotFinite, MergeError, CommandError) as error:  # of this model alone
        return str(error)
    except EvomergeError:  # of items or settings: no model would have a score
        raise
    except Exception as error:  # whatever a model or a user's fitness may raise
        return f"{type(error).__name__}: {error}"
    return outcome


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
