"""From settings to the parts of a search: sources, live model, task vectors, space, merger, tasks and fitness.

In: a typed configuration. Out: a `Problem`, complete and checked, before anything expensive has run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.code import code_of
from evomerge.common.errors import ConfigError, SpaceError
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import Exporting, Headed, Offering, Reads, offered, requirements
from evomerge.fitness.goal import Goal
from evomerge.fitness.items import SPLITS, Item, check_disjoint
from evomerge.fitness.recalibration import Recalibration, norms_of
from evomerge.merging.buffers import Buffers
from evomerge.merging.method import Method, check_rows
from evomerge.models.buffers import BASE, RECALIBRATE, floating_buffers
from evomerge.models.vocabulary import REFUSE
from evomerge.problem import Opening, Problem, Sampling, Sources, Written
from evomerge.recipes.live_directory import writer_of
from evomerge.runs.checks import check_asked, check_metrics, make_fitness
from evomerge.runs.closed_forms import CLOSED, FORMS, UNIFORM, closed_form, said
from evomerge.runs.config import CHOOSING, build
from evomerge.runs.families import Opened, open_family
from evomerge.runs.given import Given, make_merge
from evomerge.runs.leakage import leakage_notes, training_files
from evomerge.runs.objectives import (
    asked_metrics,
    check_valued,
    check_valued_metrics,
    choose_of,
    constraints_of,
    normalised,
    sure_of,
    valued_of,
)
from evomerge.runs.roles import check_names, held_out_of, role_notes, set_apart
from evomerge.runs.sampled import APPROXIMATE, check_lag, drawn_by, estimate_of, growth_of
from evomerge.runs.sources import find_sources, make_heads, read_split
from evomerge.runs.starts import NEAR, Arrays, StartFile, is_averaged, numbers_only, open_start, read_start
from evomerge.runs.targets import find_class
from evomerge.runs.transforms import described
from evomerge.search.evaluators.scoring import prepare
from evomerge.searchers.base import Searcher, check_searcher
from evomerge.searchers.warm import WarmStart
from evomerge.selection.marks import task_notes
from evomerge.selection.summary import START
from evomerge.selection.workers import Workers
from evomerge.space.coefficients import CoefficientSpace
from evomerge.task_vectors.stores import AUTO

SINCE: Mapping[str | None, Mapping[str, Any]] = {"evomerge.fitness.command.Command": {"metrics": None}}
"""Settings of fitnesses that earlier versions had none of, as they score without them."""


def build_problem(
    settings: Mapping[str, Any], reporter: Progress, fitness: Fitness | None = None, given: Given | None = None
) -> Problem:
    """Read the sources and build every part.

    Args:
        settings: of the search, as `config.plain` gives them.
        reporter: tells the user what goes on.
        fitness: of these settings, where somebody has made it already.
        given: what need not be made of the settings, since a program has it.

    Raises:
        EvomergeError: whatever is wrong with the settings or the sources.
    """
    model, opening, given = settings["model"], opening_of(settings), given or Given()
    fitness = fitness or make_fitness(settings["fitness"])
    sources = find_sources(model, settings["fitness"]["tasks"], given.family and given.family.sources)
    check_names(settings, sources.tasks)
    if sources.tasks and not isinstance(fitness, Reads):  # whose metrics may be those of its tasks
        seen = [name for name in sources.tasks if name not in held_out_of(settings)]
        check_valued_metrics(settings, fitness.metrics, seen)
    method: Method = given.merge.method if given.merge else build(settings["method"], "method")
    check_rows(method, list(sources.experts))
    fitness, items, leaks = _with_items(settings, sources, fitness, given, reporter)
    asked = partial(check_asked, fitness, items)
    family = given.family or open_family(sources, model, requirements(fitness).processor, reporter, asked)
    asked(family.live)
    warnings = [*(fitness.warnings if isinstance(fitness, Reads) else ())]
    warnings += family.notes(opening.allow_missing, pooled=not isinstance(fitness, Headed))
    if opening.template != BASE:
        warnings.append(f"all are asked as the expert {opening.template} is: with its chat template and end token")
    warnings += [*role_notes(settings), *leaks, *task_notes(sources, isinstance(fitness, Headed), items)]
    merge = given.merge or make_merge(family, method, settings, reporter)
    fitness = _equipped(fitness, sources, family, opening)
    problem = Problem(
        sources=sources,
        live=family.live,
        vectors=merge.vectors,
        rows=merge.rows,
        space=merge.space,
        method=method,
        merger=merge.merger,
        fitness=fitness,
        items=items,
        warnings=warnings,
        opening=opening,
        goal=goal_of(settings),
        sampling=sampling_of(settings),
        written=written_of(settings),
        transforms=merge.transforms,
    )
    if problem.opening.buffers != BASE and problem.buffers == BASE:
        warnings.append(f"model.buffers={opening.buffers} changes nothing: the base's files hold no statistics")
    if problem.buffers == RECALIBRATE:
        recalibrate(problem)
    return problem


def _with_items(
    settings: Mapping[str, Any], sources: Sources, fitness: Fitness, given: Given, reporter: Progress
) -> tuple[Fitness, dict[str, dict[str, list[Item]]], list[str]]:
    """Read the items, and check metrics, names and splits by them.

    Returns:
        The fitness, which offers what the settings ask for; the items of each split by task; and notes on items that
        experts were trained on.
    """
    trained_on = training_files(settings["model"].get("trained_on"), sources.experts)
    with reporter.working("reading the items"):
        read = replace(sources, tasks={name: task for name, task in sources.tasks.items() if name not in given.items})
        items = given.placed(read_splits(read, fitness), sources.tasks)
        if isinstance(fitness, Offering):
            fitness = fitness.offering(asked_metrics(settings))
        check_metrics(fitness, settings["fitness"]["metric"], settings["fitness"]["report_metric"])
        leaks = leakage_notes(sources, items, fitness.data_sets if isinstance(fitness, Reads) else {}, trained_on)
    check_disjoint(items)
    items = set_apart(items, held_out_of(settings))
    check_valued(settings, items["search"])  # once more: a function of the user's has its tasks with the items
    offers = {task: offered(fitness, task) for task in items["search"]}
    check_valued_metrics(settings, fitness.metrics, items["search"], offers)
    return fitness, items, leaks


def _equipped(fitness: Fitness, sources: Sources, family: Opened, opening: Opening) -> Fitness:
    """Return a fitness with its heads, or with what writes candidates for it."""
    if isinstance(fitness, Headed):
        fitness = fitness.with_heads(make_heads(sources, family.parameters))
    if isinstance(fitness, Exporting):
        template = None if opening.template == BASE else sources.experts[opening.template]
        fitness = fitness.with_writer(writer_of(family.live, family.base, template))
    return fitness


def recalibrate(problem: Problem) -> None:
    """Let the merger of a problem take the statistics of batch norm anew of every candidate.

    Raises:
        ConfigError: the fitness does not run the live model, or there is no batch norm.
    """
    live, fitness = problem.live, problem.fitness
    if isinstance(fitness, Exporting):
        raise ConfigError(
            "model.buffers=recalibrate runs the live model with the fitness, and a command does not run it: write "
            "model.buffers=average."
        )
    if not norms_of(live.model):
        kind = type(live.model).__name__
        raise ConfigError(f"model.buffers=recalibrate: {kind} has no batch norm: write model.buffers=average.")
    ids = problem.calibration
    chosen = {task: set(each) for task, each in ids.items()}
    items = {task: [item for item in problem.items["search"][task] if item.id in chosen[task]] for task in ids}
    prepared = prepare(fitness, live.processor, items)
    anew = Recalibration(live.model, fitness, prepared, ids, live.narrow)
    problem.merger.buffers = Buffers(live.model, floating_buffers(problem.vectors.base), anew)


def opening_of(settings: Mapping[str, Any]) -> Opening:
    """Return how model directories are opened under the settings of a search."""
    model = settings["model"]
    choice = model.get("vocabulary", REFUSE)  # runs of earlier versions do not say it, nor what may be missing
    allowed, store = tuple(model.get("allow_missing") or ()), model.get("store", AUTO)
    buffers = model.get("buffers", BASE), model.get("buffer_items", 256), model.get("template", BASE)
    return Opening(Path(model["cache"]), model["auto_class"], choice, allowed, store, *buffers)


def goal_of(settings: Mapping[str, Any]) -> Goal:
    """Return what is maximised under the settings of a search."""
    fitness, objective = settings["fitness"], settings["objective"]
    own = (objective["aggregate"], objective["weights"], normalised(settings))
    forget = tuple(objective.get("forget") or ()), objective.get("keep", 0.95)  # earlier versions have neither
    several = valued_of(settings), constraints_of(settings), choose_of(settings), sure_of(settings)
    return Goal(fitness["metric"], fitness["report_metric"], *own, *forget, *several)


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """Return how many items are scored under the settings of a search."""
    given = settings["fitness"]
    sizes = given["items"], given["select_items"], given["report_items"]
    approximate = given.get("approximate")  # earlier versions have no such setting, and `auto` is not chosen yet
    how = drawn_by(settings), growth_of(settings), approximate if approximate in APPROXIMATE else None
    return Sampling(*sizes, given["rotate"], settings["seed"], *how, *estimate_of(settings))


def written_of(settings: Mapping[str, Any]) -> Written:
    """Return method, transforms, fitness and space as identities and recipes write them."""
    given = settings["fitness"]
    since = {name: value for name, value in SINCE.get(given.get("_target_"), {}).items() if given.get(name) == value}
    fitness = {name: value for name, value in given.items() if name not in CHOOSING and name not in since}
    transform = described(settings.get("transform") or [])
    code = code_of(find_class(settings["method"]["_target_"], "method"))
    return Written(settings["method"], transform, fitness, settings["space"]["granularity"], code)


def read_splits(sources: Sources, fitness: Fitness) -> dict[str, dict[str, list[Item]]]:
    """Return the items of each split by task.

    Args:
        sources: where tasks come from.
        fitness: scores them, and reads them by itself if it can.

    Raises:
        ConfigError: a task has a setting that this fitness does not know, or what the fitness needs is missing.
        SuiteError: items cannot be read.
    """
    kind, known = type(fitness).__name__, fitness.task_settings if isinstance(fitness, Reads) else ()
    for task, given in sources.further.items():
        if strange := sorted(set(given) - set(known)):
            raise ConfigError(
                f"fitness.tasks.{task}.{strange[0]} means nothing to the fitness {kind}: leave it out, or choose the "
                f"fitness that it belongs to (fitness=lm_eval, fitness=perplexity)."
            )
    if isinstance(fitness, Reads):
        return fitness.read(sources.tasks, sources.further)
    if asked := [name for name, task in sources.tasks.items() if task.items.suffix in (".yaml", ".yml")]:
        raise ConfigError(
            f"The task {asked[0]} is a task of lm-eval ({sources.tasks[asked[0]].items}), which the fitness {kind} "
            f"cannot read: write fitness=lm_eval."
        )
    return {split: read_split(sources.tasks, split, isinstance(fitness, Headed)) for split in SPLITS}


def find_start(
    settings: Mapping[str, Any],
    problem: Problem,
    reporter: Progress,
    workers: Workers | None = None,
    *,
    began: bool = False,
) -> Arrays | None:
    """Return the coefficients that a search begins with; None for the best of a few constants.

    Args:
        settings: of the search; `start` is `constants`, a number, the text `1/K`, a closed form
            (`closed_forms.py`), or the path of a recipe or of a merge YAML of mergekit's.
        problem: what is searched.
        reporter: is told what takes long.
        workers: score what must be scored for it; None where this process does.
        began: whether the run has begun: one of an earlier version may have begun with a YAML that is refused now.

    Raises:
        ConfigError: `start` is none of these.
    """
    start, space = settings["start"], problem.space
    if start == "constants":
        return None
    if start == UNIFORM:
        return {"weight": 1 / len(space.rows)}
    if isinstance(start, int | float) and not isinstance(start, bool):
        return {"weight": float(start)}
    if (weights := closed_form(start, settings, problem, reporter, workers, began)) is not None:
        if _otherwise({"weight": weights}, space.start({"weight": weights}), space):
            reporter.say(f"note: the space cannot express {START}{said(start)}: its nearest point stands in its place")
        return {"weight": weights}
    if not isinstance(start, str) or not Path(start).is_file():
        raise ConfigError(
            f"start={start} is no number, no name and no file: write start=constants (tries a few), start=0.4, "
            f"start=1/K, start={', start='.join(CLOSED)}, start=runs/<name>/recipe.yaml or a merge YAML of mergekit's."
        )
    file = open_start(start)
    if note := numbers_only(file, problem):
        reporter.say(f"note: {note}")
    return _of_file(file, settings, problem, reporter, began)


def _of_file(
    file: StartFile, settings: Mapping[str, Any], problem: Problem, reporter: Progress, began: bool = False
) -> Arrays:
    """Return the coefficients of a recipe or of a merge YAML; see `find_start`."""
    space, parameters = problem.space, problem.vectors.parameters
    steps = [str(step.about()["name"]) for step in problem.transforms]
    if began and steps and file.recipe is None:
        reporter.say(
            f"note: this run began with the numbers of {file.path}, which make another merge after "
            f"{' + '.join(steps)}; it stays so"
        )
        steps = []
    found = read_start(file, settings["method"], space, parameters, problem.sources, steps)
    if _otherwise(found, space.start(found), space) or is_averaged(file, space, parameters):
        reporter.say(f"note: the space cannot express {START}{file.path}: what is nearest to it stands in its place")
    return found


def find_baselines(
    settings: Mapping[str, Any], problem: Problem, reporter: Progress, workers: Workers | None = None
) -> dict[str, np.ndarray]:
    """Return starts that are judged beside what the search finds, as points (dim,), by their names among finalists.

    Args:
        settings: of the search; `baselines` is a list of starts: numbers, `1/K`, closed forms, and paths of recipes and
            of merge YAMLs.
        problem: what is searched.
        reporter: is told what takes long.
        workers: score what must be scored for it; None where this process does.

    Raises:
        ConfigError: one is no such start, lies outside of the space, or is a recipe of another method, transform or
            model.
    """
    given, points = settings.get("baselines") or [], dict[str, np.ndarray]()
    starts = given if isinstance(given, list) else [given]
    for start in starts:
        known = not isinstance(start, str) or start in FORMS or Path(start).is_file()
        if known and isinstance(given, list):
            continue
        wrong = f"{start} is no list" if known else f"{start} is no start that needs no search"
        raise ConfigError(
            f"baselines: {wrong}: write a list of numbers, 1/K, {', '.join(CLOSED)}, or files that are there, recipes "
            f"and merge YAMLs of mergekit's, such as 'baselines=[1/K,metagpt,their.yml]'."
        )
    for start in starts:
        try:
            if isinstance(start, str) and start not in FORMS:
                file = open_start(start)
                if note := numbers_only(file, problem):
                    raise ConfigError(f"{note}, so it cannot be judged here. `evomerge evaluate` scores it as it is.")
                found = _of_file(file, settings, problem, reporter)
            else:
                found = find_start({**settings, "start": start}, problem, reporter, workers)
            points[baseline_name(start)] = problem.space.start(found or {})
        except (ConfigError, SpaceError) as error:
            raise ConfigError(f"baselines: {error}") from error
    return points


def unscored(
    settings: Mapping[str, Any], problem: Problem, start: Arrays | None, gram: np.ndarray | None = None
) -> str:
    """Return a note where a search begins around a closed form or a file without scoring it, as CMA-ES does, and no
    baseline judges it; nothing elsewhere.

    Args:
        settings: of the search.
        problem: what is searched.
        start: the coefficients that it begins with.
        gram: what `make_searcher` takes.
    """
    given, judged = settings["start"], settings.get("baselines") or []
    if start is None or isinstance(given, int | float) or given in judged:
        return ""
    if isinstance(given, str) and given not in FORMS and numbers_only(open_start(given), problem):
        return ""  # no merge that could be judged
    first = make_searcher(settings, problem.space, start, problem.objectives, problem.negated, gram).ask().points
    if np.isclose(first, problem.space.start(start), 0, NEAR).all(axis=1).any():
        return ""
    return (
        f"note: the search begins around start={said(given)} and does not score it; what it is worth is said with "
        f"'baselines=[{said(given)}]'"
    )


def baseline_name(start: Any) -> str:
    """Return what a start is called among finalists: `start metagpt`, `start runs/a/recipe.yaml`."""
    return f"{START}{said(start)}"


def _otherwise(wanted: Arrays, point: np.ndarray, space: CoefficientSpace) -> bool:
    """Return whether coefficients of a point are others than those of a start, where the search can move them."""
    kept = space.decode(point)
    return any(
        bool((np.abs(kept[variable] - values)[space.moves(variable)] > NEAR).any())
        for variable, values in wanted.items()
        if np.ndim(values)  # a constant is of coordinates, whatever the space makes of them
    )


def make_searcher(
    settings: Mapping[str, Any],
    space: CoefficientSpace,
    start: Arrays | None = None,
    objectives: int = 1,
    negated: Collection[str] = (),
    gram: np.ndarray | None = None,
) -> Searcher:
    """Return the searcher, with its warm start.

    Args:
        settings: of the search.
        space: where it searches.
        start: the coefficients to begin with; None for the best of a few constants.
        objectives: how many values a point has.
        negated: the rows that constants take away, where something is to be forgotten; all where none is named.
        gram: the inner products of all rows, for a searcher that goes by them (`akin.py`).

    Raises:
        ConfigError: the searcher's settings do not fit the space.
    """
    own = {"seed": settings["seed"], **({"objectives": objectives} if objectives > 1 else {})}
    own |= {"gram": gram} if gram is not None else {}

    def make(point: np.ndarray) -> Searcher:
        searcher: Searcher = build(settings["searcher"], "searcher", space=space, start=point, **own)
        check_searcher(searcher)
        check_lag(settings, searcher)
        return searcher

    if start is None and space.dim > 1:
        return WarmStart(space, make, -1 if settings["objective"].get("forget") else 1, objectives, negated)
    return make(space.start(start or {}))
