"""The front door for Python: a family of models, candidates of it, a search, and its result.

In: models (directories, names on the hub, modules, state dicts), a fitness (any function), items. Out: a `Result` that
shows itself, has the merged model, and saves it. A search from here is the search of the command: the same settings,
the same log, the same honest selection. Everything is silent by default, and works in any thread; one candidate serves
one search at a time, since all of them write into its live model.

    family = em.Family("models/base", mood="models/mood", topic="models/topic")
    candidate = em.Candidate(family, space="layer")
    result = em.search(candidate, score, {"mood": em.items("mood.jsonl"), "topic": em.items("topic.jsonl")}, budget=200)
    result.save("merged")
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from evomerge.common.directories import TemporaryDirectory
from evomerge.common.errors import ConfigError
from evomerge.common.forms import checked
from evomerge.common.limits import TimeLimit
from evomerge.common.names import unknown
from evomerge.common.progress import WRITTEN, Progress, Silent
from evomerge.fitness.items import HELD_OUT, SPLITS, Item
from evomerge.fitness.objectives import KNEE
from evomerge.fitness.splits import Splits, split_items
from evomerge.inspection.candidate import Candidate
from evomerge.inspection.comparing import compare
from evomerge.inspection.family import Family
from evomerge.report.result import Result
from evomerge.runs.asked import composed, fitness_of, tasks_of
from evomerge.runs.choices import Choice, settings_of
from evomerge.runs.given import Given
from evomerge.runs.run import run_search
from evomerge.search.stopping import Interrupt, Stopped
from evomerge.selection.comparison import Comparison
from evomerge.selection.evaluation import evaluate as compare_models
from evomerge.selection.named import find_model

__all__ = [
    "Candidate",
    "Choice",
    "Family",
    "Item",
    "Result",
    "Splits",
    "classification",
    "cmaes",
    "compare",
    "evaluate",
    "gradient",
    "greedy",
    "grid",
    "hybrid",
    "items",
    "lm_eval",
    "load",
    "perplexity",
    "processes",
    "random",
    "ray",
    "screened",
    "search",
    "topk",
    "tpe",
]


@checked(classes="['no', 'yes']")
def items(source: str | Path | Iterable[Any], classes: Sequence[str] = ()) -> Splits:
    """Return the items of a task: `search` items guide, `select` items choose the winner, `report` items judge it.

    Args:
        source: a `.jsonl` or `.txt` file, or a directory with search.jsonl, select.jsonl and report.jsonl; or texts,
            pairs (text, label) or mappings in memory, split by the hash of each; or {split: any of these}.
        classes: the names of the classes, where labels are names.

    >>> items([(f"text {i}", i % 2) for i in range(100)])
    <items: 39 search, 26 select, 35 report>
    """
    return split_items(source, classes)


@checked(
    candidate="a Candidate",
    budget="200",
    run="'runs/mine' or None",
    seed="1",
    start="'constants', 0.4, '1/K' or the path of a recipe",
    baselines="['1/K', 0.3, 'their.yml'] or None",
    items="100 or None",
    select_items="600 or None",
    report_items="900 or None",
    rotate="True or False",
    sampling="'stratified', 'uniform', 'disagreement' or 'adaptive'",
    grow="0.25 or None",
    approximate="'bfloat16', 'auto' or None",
    estimate="'p-irt', 'gp-irt', 'mp-irt', 'gmp-irt' or None",
    estimate_from="a list of constants, such as [0.3, 0.6]",
    remember="True or False",
    aggregate="'mean', 'worst', 'chebyshev' or 'pareto'",
    normalised="True or False",
    weights="{'mood': 2, 'topic': 1} or None",
    values="{'skills': ['mood', 'topic'], 'safety': ['refusals']} or None",
    constraints="{'safety': '>= 0.98 * base'} or None",
    sure="0 or 2",
    choose="'knee' or {'at_least': {'safety': '0.98 * base'}, 'best': 'skills'}",
    held_out="['mood'] or None",
    worth="True or False",
    forget="['mood'] or None",
    keep="0.95",
    loss="'cross_entropy'",
    evaluator="'serial', 'processes', 'ray' or em.processes(workers=4)",
    time_limit="900, 'auto' or None",
    budget_items="20000 or None",
    hours="1.5 or None",
    progress=WRITTEN,
)
def search(
    candidate: Candidate,
    fitness: str | Choice | Callable[..., Any],
    tasks: Mapping[str, Any],
    *,
    searcher: str | Choice | type | None = None,
    budget: int = 200,
    run: str | Path | None = None,
    seed: int = 1,
    start: str | Path | float | Mapping[str, Any] = "constants",
    baselines: Sequence[str | Path | float | Mapping[str, Any]] | None = None,
    items: int | None = 100,
    select_items: int | None = None,
    report_items: int | None = None,
    rotate: bool = False,
    sampling: str = "stratified",
    grow: float | None = None,
    approximate: str | None = None,
    estimate: str | None = None,
    estimate_from: Sequence[float] = (),
    remember: bool = False,
    aggregate: str = "mean",
    normalised: bool = False,
    weights: Mapping[str, float] | None = None,
    held_out: Sequence[str] | None = None,
    worth: bool = False,
    forget: Sequence[str] | None = None,
    keep: float = 0.95,
    values: Mapping[str, Any] | None = None,
    constraints: Mapping[str, str] | None = None,
    sure: float = 0.0,
    choose: str | Mapping[str, Any] = KNEE,
    loss: str | Choice = "cross_entropy",
    evaluator: str | Choice = "serial",
    racing: float | Literal["halving"] | None = None,
    time_limit: float | str | None = "auto",
    budget_items: int | None = None,
    hours: float | None = None,
    tracker: str | Choice | type | None = None,
    progress: Progress | None = None,
) -> Result:
    """Search the coefficients of a candidate, choose the winner honestly, and return the result.

    Args:
        candidate: what is searched; the base is in its live model afterwards.
        fitness: a function `score(model, items)` that returns a number for each item of one task, or
            `score(model, tokenizer, items)` that returns {task: numbers}, higher is better; the name of one,
            `file.py:score`; or classification, perplexity or lm_eval.
        tasks: by name, what `items` returns or takes, or a mapping with that as its `items` and what else
            `fitness.tasks` takes: {"items": ..., "expert": "mood"}. A task with the name of an expert is that expert's
            own.
        searcher: cmaes, screened, tpe, random, grid, greedy, topk, gradient or hybrid, or what the functions of these
            names return; nsga2 and others of conf/searcher by name; None for cmaes, or for tpe where there is a single
            coefficient.
        budget: candidates in all.
        run: the run directory: called again with the same arguments, the search goes on where it was. None: a temporary
            one, which lives as long as the result.
        seed: of everything that is drawn.
        start: constants (tries a few), a number, 1/K, a closed form, the recipe.yaml of an earlier run, or a merge YAML
            of mergekit's.
        baselines: such starts, but for constants, that are judged beside what is found: each is a finalist, and wins if
            it is better. Given later, they are judged beside what was found already.
        items: search items for a candidate, in all; None for every one.
        select_items: how many choose the winner; None for every one.
        report_items: how many judge it; None for every one.
        rotate: other search items for every generation.
        sampling: how they are drawn: stratified by class, uniform, by the disagreement of base and experts, or
            adaptive: by that of candidates so far.
        grow: the share of them that the first generation has, if samples are to grow.
        approximate: a narrower dtype in which candidates are scored on search items, `auto` for bfloat16 where that is
            faster here; select and report items never are.
        estimate: values are what item response theory expects of a candidate on all search items, where answers are
            right or wrong: p-irt, gp-irt, mp-irt or gmp-irt.
        estimate_from: constants that are scored on all search items first for them, beside base and experts.
        remember: whether scores of candidates stay in the cache, where other searches find them.
        aggregate: mean, worst (task), chebyshev or pareto.
        normalised: scores of tasks between base and expert.
        weights: of tasks in the mean.
        held_out: tasks that the search never sees: they are scored in the report alone.
        worth: whether every expert, and their ensemble where the fitness gives probabilities, is scored on all report
            items at the end; `Result.beside` has them. Given later, they alone are scored.
        forget: tasks whose scores are to be low; the bounds of the weights must allow negative ones.
        keep: the share of the base's score that the other tasks must keep then.
        values: several values, none of them added up, as `objective.values` takes them: {name: [task, ...]}; with
            aggregate="pareto" alone every task is one.
        constraints: what a winner must keep: {task, value or metric: ">= 0.98 * base"}, {"distance": "<= 0.05"}.
        sure: by how many standard errors finalists must keep it on the select items.
        choose: how the winner of a front is chosen: knee, or {"at_least": {value: "0.98 * base"}, "best": value}.
        loss: what a gradient learns from.
        evaluator: serial, or processes or ray: workers that score side by side, for models, fitness and items with
            names.
        racing: the share of the best candidates that may be lost where those that fall behind are dropped before they
            are scored on all items, such as 0.1; "halving" where ranks alone decide; None where all are.
        time_limit: seconds for a candidate; auto is 100 times the base's; None for none.
        budget_items: item evaluations in all.
        hours: that this call may take, choosing the winner included; the same call again has as many again.
        tracker: shows the search elsewhere as well: tensorboard, wandb, trackio, or a class of your own; with settings
            `Choice("tracker", "wandb", {"project": "mine"})`.
        progress: is told what goes on.

    Raises:
        EvomergeError: something is wrong with what was given; nothing of a run is lost.
        Stopped: it was asked to stop; the same call goes on, if it has a run directory.
    """
    family, config = candidate.family.opened, dict(candidate.merge.settings)
    usual = "cmaes" if candidate.space.dim > 1 else "tpe"
    chosen, own = fitness_of(fitness)
    named, held = tasks_of(tasks)
    config["fitness"] = {
        **chosen,
        **{
            "tasks": named,
            "items": items,
            "rotate": rotate,
            "sampling": sampling,
            "grow": grow,
            "approximate": approximate,
            "estimate": estimate,
            "estimate_from": list(estimate_from),
            "remember": remember,
            "select_items": select_items,
            "report_items": report_items,
            "held_out": held_out and list(held_out),
            "worth": worth,
        },
    }
    config["searcher"] = settings_of("searcher", usual if searcher is None else searcher)
    config["loss"] = settings_of("loss", loss)
    config["tracker"] = None if tracker is None else settings_of("tracker", tracker)
    config["evaluator"] = settings_of("evaluator", evaluator)
    config["racing"] = {"halving": True} if isinstance(racing, str) and racing == "halving" else {"alpha": racing}
    config["objective"] = {"aggregate": aggregate, "normalised": normalised, "weights": weights and dict(weights)}
    config["objective"] |= {"forget": forget and list(forget), "keep": keep}
    config["objective"] |= {"values": values, "constraints": constraints and dict(constraints), "sure": sure}
    config["objective"]["choose"] = choose
    config |= {"model": family.settings, "budget": budget, "budget_items": budget_items, "budget_hours": hours}
    config |= {"time_limit": time_limit, "seed": seed, "start": _as_setting(start)}
    config["baselines"] = None if baselines is None else [_as_setting(each) for each in baselines]
    return _run(composed(config), candidate, Given(family, candidate.merge, own, held), run, progress or Silent())


def _run(asked: Any, candidate: Candidate, given: Given, run: str | Path | None, progress: Progress) -> Result:
    """Run a search whose settings are composed; see `search`."""
    kept = TemporaryDirectory() if run is None else None
    directory, interrupt = kept.path if kept else Path(str(run)), Interrupt()
    candidate.base()  # whatever was put into the live model: the first thing that is scored is the base
    try:
        summary = run_search(asked, directory, progress, interrupt, given)
    finally:
        candidate.base()
    if summary is None:
        if interrupt.by is not None:  # the log is in order: now the signal does what it does in this program
            signal.raise_signal(interrupt.by)
        raise Stopped(f"The search was asked to stop. Call it again with run={str(run)!r} to go on.")
    return Result(directory, candidate, kept, given)


def _as_setting(start: Any) -> Any:
    """Return a start as the settings have it."""
    return str(start) if isinstance(start, Path) else start


@checked(
    result="a Result, as `search` and `load` return it",
    models="'base', 'experts', 'constant:0.4', the name of an expert, a path, or another Result",
    split="'search', 'select', 'report', 'held_out' or None",
    progress=WRITTEN,
)
def evaluate(
    result: Result, *models: str | Path | Result, split: str | None = None, progress: Progress | None = None
) -> Comparison:
    """Score the winner of a search beside other models, all on the same items, and compare each with it.

    Args:
        result: the search, whose tasks and fitness count.
        models: base, experts, the name of an expert, constant:0.4; a model directory, a run directory or a recipe; or
            another result.
        split: search, select, report or held_out; None for report where the winner is the only merge, else for select,
            since whoever takes the best of many on the report items has a number that is too high.
        progress: is told what goes on.

    Raises:
        EvomergeError: there is no such model, or it belongs to another base.
    """
    if split not in (None, *SPLITS, HELD_OUT):
        raise ConfigError(unknown("split", split, (*SPLITS, HELD_OUT)))
    named = {"winner": find_model(str(result.path), ())}
    for given in models:
        name = str(given.path if isinstance(given, Result) else given)
        named[name] = find_model(name, list(result.recipe.experts))
    chosen = split or ("select" if sum(model.choosable for model in named.values()) > 1 else "report")
    problem = result.problem
    problem.become(None)  # whatever was put into the live model
    try:
        return compare_models(problem, named, chosen, progress or Silent(), TimeLimit("auto"))
    finally:
        problem.become(None)


@checked(run="'runs/mine'")
def load(run: str | Path) -> Result:
    """Return the result of a search that the command, or a program, ran: `load("runs/mine")`.

    Raises:
        ConfigError: it is no run directory; a merge YAML and a recipe are opened by `Candidate.read`.
    """
    if Path(run).is_file():
        raise ConfigError(f"{run} is a file, and `load` opens a run directory: write Candidate.read({str(run)!r}).")
    return Result(run)


def cmaes(**settings: Any) -> Choice:
    """CMA-ES: `sigma`, `popsize`, `diagonal_above`, `keep`, `lag`.

    >>> cmaes(sigma=0.2).settings["sigma"]
    0.2
    """
    return Choice("searcher", "cmaes", settings)


def screened(**settings: Any) -> Choice:
    """CMA-ES whose larger generations are screened: `share`, `agree`, `sigma`, `popsize`, `diagonal_above`, `keep`."""
    return Choice("searcher", "screened", settings)


def tpe(**settings: Any) -> Choice:
    """TPE: `batch`, `startup`, `candidates`, `share`, `keep`, `incumbents`, `lag`."""
    return Choice("searcher", "tpe", settings)


def random(**settings: Any) -> Choice:
    """Uniform random search: `batch`, `keep`, `incumbents`, `lag`."""
    return Choice("searcher", "random", settings)


def grid(**settings: Any) -> Choice:
    """A grid over one coefficient: `coordinate`, `points`, `keep`."""
    return Choice("searcher", "grid", settings)


def greedy(**settings: Any) -> Choice:
    """Experts one by one, as in a greedy soup: `keep`."""
    return Choice("searcher", "greedy", settings)


def topk(**settings: Any) -> Choice:
    """The best models merged two by two, generation by generation: `k`, `explore`, `kin`, `keep`."""
    return Choice("searcher", "topk", settings)


def gradient(**settings: Any) -> Choice:
    """Steps along the gradient of a loss: `lr`, `betas`, `schedule`, `steps`, `every`."""
    return Choice("searcher", "gradient", settings)


def hybrid(**settings: Any) -> Choice:
    """A gradient, then another searcher: `first`, `second`."""
    return Choice("searcher", "hybrid", settings)


def processes(**settings: Any) -> Choice:
    """Workers on this machine: `workers`, `gpus`, `threads`, `blocks`.

    >>> processes(workers=4).settings["workers"]
    4
    """
    return Choice("evaluator", "processes", settings)


def ray(**settings: Any) -> Choice:
    """Workers on a cluster of Ray's: `workers`, `gpus`, `threads`, `blocks`, `address`.

    >>> ray(address="auto").settings["address"]
    'auto'
    """
    return Choice("evaluator", "ray", settings)


def classification(**settings: Any) -> Choice:
    """Classification of texts or images with the heads of the experts: `batch_size`, `max_length`, `metric`."""
    return Choice("fitness", "classification", settings)


def perplexity(**settings: Any) -> Choice:
    """The likelihood of texts under a language model."""
    return Choice("fitness", "perplexity", settings)


def lm_eval(**settings: Any) -> Choice:
    """Tasks of lm-eval."""
    return Choice("fitness", "lm_eval", settings)
