"""The settings `objective` of a search with several values or with constraints: what they say, and what is refused.

In: these settings, the searcher's, the tasks and the metrics of the fitness. Out: values and constraints as a `Goal`
has them; or a refusal, before anything is loaded where nothing else need be known. Runs of earlier versions have none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import OmegaConf

from evomerge.common.arguments import is_kind
from evomerge.common.errors import ConfigError
from evomerge.common.names import listed, unknown
from evomerge.fitness.conditions import read_limit
from evomerge.fitness.goal import Valued
from evomerge.fitness.objectives import AGGREGATES, CHEBYSHEV, KNEE, PARETO
from evomerge.fitness.values import AGGREGATES as OF_TASKS
from evomerge.fitness.values import DISTANCE
from evomerge.runs.racing import races_of
from evomerge.runs.sampled import changing
from evomerge.runs.targets import CONF, choices_of, find_class

KINDS = {"tasks": "a list of tasks", "metric": "a metric", "minimise": "true or false", "aggregate": "mean or worst"}
"""What may be said of a value."""
EXAMPLE = "'objective.values={skills: [a, b], short: {metric: length, minimise: true}}'"
NEAR = "'objective.values={skills: [a, b], near: {metric: distance, minimise: true}}'"
WITHIN = "'objective.constraints={distance: \"<= 0.05\"}'"
"""How the distance from the base is kept small: beside other values, or within a limit."""


def several(settings: Mapping[str, Any]) -> bool:
    """Return whether a search has several values."""
    return settings["objective"]["aggregate"] == PARETO or bool(settings["objective"].get("values"))


def normalised(settings: Mapping[str, Any]) -> bool:
    """Return whether scores count from the base to the experts, as the distance from these does."""
    objective = settings["objective"]
    return bool(objective["normalised"]) or objective["aggregate"] == CHEBYSHEV


def constraints_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the constraints by name; none in runs of earlier versions."""
    return dict(settings["objective"].get("constraints") or {})


def choose_of(settings: Mapping[str, Any]) -> Any:
    """Return how the winner of a front is chosen."""
    return settings["objective"].get("choose") or KNEE


def sure_of(settings: Mapping[str, Any]) -> float:
    """Return by how many standard errors finalists must hold the constraints; 0 in runs of earlier versions."""
    return float(settings["objective"].get("sure") or 0.0)


def valued_of(settings: Mapping[str, Any]) -> dict[str, Valued]:
    """Return what the user says of each value; nothing where every task is one, or where there is one value."""
    found = dict[str, Valued]()
    for name, given in (settings["objective"].get("values") or {}).items():
        one: dict[str, Any] = {"tasks": given} if isinstance(given, list) else dict(given)
        tasks = one.pop("tasks", None)
        found[str(name)] = Valued(None if tasks is None else tuple(tasks), **one)
    return found


def check_objective(settings: Mapping[str, Any]) -> None:
    """Check these settings, as far as nothing else need be known.

    Raises:
        ConfigError: one has another form, or they do not go together with others.
    """
    given = settings["objective"]
    if (aggregate := given["aggregate"]) not in AGGREGATES:
        raise ConfigError(f"objective.aggregate is '{aggregate}'; write one of {', '.join(AGGREGATES)}.")
    _check_values(given.get("values"))
    _check_constraints(settings)
    _check_sure(settings)
    if several(settings):
        _check_several(settings)
        _check_searcher(settings, 2)
        _check_choose(choose_of(settings))
    elif choose_of(settings) != KNEE:
        raise ConfigError("objective.choose says how one point of a front is chosen: write objective=pareto as well.")


def check_valued(settings: Mapping[str, Any], tasks: Collection[str]) -> None:
    """Hold values and constraints against the tasks that the search sees.

    Raises:
        ConfigError: a name is none of theirs, or there is one value alone.
    """
    values = settings["objective"].get("values") or {}
    for name, one in values.items():
        for task in one if isinstance(one, list) else one.get("tasks") or ():
            if task not in tasks:
                raise ConfigError(f"objective.values.{name}: {unknown('task', task, tasks)}")
    for name in constraints_of(settings):
        if name in values and name in tasks and values[name] not in ([name], {"tasks": [name]}):
            raise ConfigError(
                f"objective.constraints.{name} may be meant for the task {name} or for the value of that name, which "
                f"is another thing: give the value another name."
            )
    if not several(settings):
        return
    names = list(values or tasks)
    if settings["objective"].get("weights") and not any(map(_summed, values.values())):
        raise ConfigError(
            "objective.weights weighs tasks within a value, and here every value is one task: leave it out, or name "
            f"values of several tasks: {EXAMPLE}."
        )
    if len(names) == 1:
        raise ConfigError(
            f"objective=pareto is for two values or more, and {names[0]} is one: write objective=mean, or {EXAMPLE}."
        )
    if names:  # of a function of the user's, tasks come with the items
        _check_chosen(choose_of(settings), names)
        _check_searcher(settings, len(names))


def asked_metrics(settings: Mapping[str, Any]) -> set[str]:
    """Return the metrics that settings name, with the names of constraints, which may be metrics."""
    values = (settings["objective"].get("values") or {}).values()
    named = [one.get("metric") for one in values if isinstance(one, Mapping)]
    chosen = [settings["fitness"][name] for name in ("metric", "report_metric")]
    return {str(name) for name in (*chosen, *named, *constraints_of(settings)) if name is not None}


def check_valued_metrics(
    settings: Mapping[str, Any],
    metrics: Collection[str],
    tasks: Collection[str],
    offers: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Refuse what names a metric that there is not; and of the distance from the base, what has no sense.

    Args:
        settings: of the search.
        metrics: those of the fitness.
        tasks: that the search sees.
        offers: by task, metrics that it has beside them.

    Raises:
        ConfigError: there is such.
    """
    values = settings["objective"].get("values") or {}
    known, apart, offers = list(dict.fromkeys([*metrics, DISTANCE])), set[str](), offers or {}
    for name, one in values.items():
        metric = one.get("metric") if isinstance(one, Mapping) else None
        own = one.get("tasks") or tasks if isinstance(one, Mapping) else tasks
        if metric not in (None, *known) and _lacking(metric, own, offers):
            raise ConfigError(
                f"objective.values.{name}.metric is '{metric}'; {_given(metrics, offers)}: write one of these."
            )
        if metric == DISTANCE and DISTANCE not in metrics:
            apart.add(name)
            if not one.get("minimise"):
                raise ConfigError(
                    f"objective.values.{name} is the distance from the base, and more of it is not better: write "
                    f"minimise: true beside it, {NEAR}."
                )
    for name in constraints_of(settings):
        if name not in (*values, *tasks, *known) and (lacking := _lacking(name, tasks, offers)):
            some = list(dict.fromkeys(each for names in offers.values() for each in names))
            if name not in some:
                there = [*values, *tasks, *known, *some]
                raise ConfigError(f"objective.constraints: {unknown('value, task or metric', name, there)}")
            raise ConfigError(
                f"objective.constraints.{name} is a limit over all tasks, and {listed(lacking)} cannot have that "
                f"metric; {_given(metrics, offers)}: limit one that all have, or a value of the tasks that have it."
            )
        if name == DISTANCE and name not in (*values, *tasks, *metrics):
            apart.add(name)
    _check_apart(settings, apart)


def _lacking(metric: str, tasks: Collection[str], offers: Mapping[str, Collection[str]]) -> list[str]:
    """Return the tasks of which a metric is not offered."""
    return [task for task in tasks if metric not in offers.get(task, ())]


def _given(metrics: Collection[str], offers: Mapping[str, Collection[str]]) -> str:
    """Return which metrics there are, in words."""
    alone = [f"of {task} {', '.join(names)}" for task, names in offers.items() if names]
    return f"this fitness gives {', '.join([*metrics, *alone])}, and {DISTANCE} is that of the weights from the base's"


def check_reported(settings: Mapping[str, Any], metrics: Collection[str]) -> None:
    """Refuse to choose a winner by the distance from the base.

    Args:
        settings: of the search.
        metrics: those of the fitness.

    Raises:
        ConfigError: it is asked for; `evomerge evaluate` alone shows it.
    """
    if settings["fitness"]["report_metric"] == DISTANCE and DISTANCE not in metrics:
        raise ConfigError(
            f"fitness.report_metric={DISTANCE} would make the winner the merge that lies farthest from the base: write "
            f"{NEAR}, or {WITHIN}. `evomerge evaluate --metric {DISTANCE}` shows it of any model."
        )


def _check_apart(settings: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse limits of the distance from the base that are shares of the base's own, which is 0."""
    choose = choose_of(settings)
    limits = {f"objective.constraints.{name}": text for name, text in constraints_of(settings).items() if name in names}
    if choose != KNEE:
        asked = choose["at_least"].items()
        limits |= {f"objective.choose.at_least.{name}": f">= {text}" for name, text in asked if name in names}
    for where, text in limits.items():
        if not read_limit(where, text)[2]:
            raise ConfigError(
                f"{where} is a share of the base's distance from itself, which is 0: write a number, such as {WITHIN}."
            )


def objective_identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what values and constraints add to the identity of a search; nothing where there are none."""
    own = {name: settings["objective"].get(name) for name in ("values", "constraints")}
    # as lists, since a trial has numbers and no names: in another order it is another search
    found = {name: [[key, one] for key, one in value.items()] for name, value in own.items() if value}
    return {**found, **({"condition": settings["fitness"]["report_metric"]} if own["constraints"] else {})}


def _check_values(values: Any) -> None:
    if values is None:
        return
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"objective.values is {values}; write names, and of which tasks each is made: {EXAMPLE}.")
    if len(values) == 1:
        raise ConfigError(
            f"objective.values has one value, {next(iter(values))}, and two or more are a front: write fitness.metric "
            f"and objective.weights for one, or {EXAMPLE}."
        )
    for name, one in values.items():
        where = f"objective.values.{name}"
        _check_name("objective.values", name)
        if isinstance(one, list):
            _check_tasks(where, one)
            continue
        if not isinstance(one, Mapping):
            raise ConfigError(f"{where} is {one}; write a list of tasks, or settings of it: {EXAMPLE}.")
        if strange := [str(key) for key in one if key not in KINDS]:
            raise ConfigError(f"{where}: {unknown('setting', strange[0], list(KINDS))}")
        if one.get("tasks") is not None:
            _check_tasks(f"{where}.tasks", one["tasks"])
        good = {
            "metric": is_kind(one.get("metric"), "str") or one.get("metric") is None,
            "minimise": isinstance(one.get("minimise", False), bool),
            "aggregate": one.get("aggregate", "mean") in OF_TASKS,
        }
        for key in (key for key, fine in good.items() if not fine):
            raise ConfigError(f"{where}.{key} is {one[key]}; write {KINDS[key]}.")


def _check_name(where: str, name: Any) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"{where} has the name {name!r}, which is no text: write it with a letter, such as v{name}.")


def _check_tasks(where: str, tasks: Any) -> None:
    if not (isinstance(tasks, list) and tasks and all(isinstance(task, str) for task in tasks)):
        raise ConfigError(f"{where} is {tasks}; write a list of tasks: {EXAMPLE}.")


def _check_constraints(settings: Mapping[str, Any]) -> None:
    given = settings["objective"].get("constraints")
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"objective.constraints is {given}; write limits by the name of a value or a task: "
            f"'objective.constraints={{safety: \">= 0.98 * base\"}}'."
        )
    for name, text in given.items():
        _check_name("objective.constraints", name)
        read_limit(f"objective.constraints.{name}", text)
    if given and (items := changing(settings)):
        raise ConfigError(
            f"objective.constraints needs the base on the items of a candidate, and with {items} those change: use one "
            f"or the other."
        )
    if given and (race := races_of(settings)):
        raise ConfigError(
            f"{race} drops candidates by the mean of a part of their items, and objective.constraints counts all of "
            f"them: leave {race} out."
        )


def _check_sure(settings: Mapping[str, Any]) -> None:
    given = settings["objective"].get("sure")
    if given is None or given == 0:
        return
    if not is_kind(given, "float") or not 0 <= given < math.inf:
        raise ConfigError(f"objective.sure is {given}: write a number of standard errors from 0, such as 1 or 2.")
    if not constraints_of(settings):
        raise ConfigError(
            f"objective.sure={given:g} says how surely constraints must hold, and there are none: leave it out, or "
            f"write 'objective.constraints={{safety: \">= 0.98 * base\"}}'."
        )


def _check_several(settings: Mapping[str, Any]) -> None:
    objective = settings["objective"]
    instead = {
        "normalised": "no value is added to another, so none need be normalised: leave it out",
        "forget": "a task to forget is a value to be small: write 'objective.values={gone: {tasks: [mood], minimise: "
        "true}, ...}' and 'objective.constraints={...}' for what is to be kept",
    }
    for name, what in instead.items():
        if objective.get(name):
            raise ConfigError(f"objective.{name} is for one value, and this search has several; {what}.")
    if objective["aggregate"] not in ("mean", PARETO):
        raise ConfigError(
            f"objective.aggregate={objective['aggregate']} makes one value, and objective.values names several: write "
            f"objective=pareto, or leave out one of the two."
        )
    if race := races_of(settings):
        raise ConfigError(
            f"{race} drops the candidates that fall behind in one value, and this search has several: leave {race} out."
        )


def _check_searcher(settings: Mapping[str, Any], count: int) -> None:
    """Refuse a searcher that cannot take so many values."""
    target = str(settings["searcher"]["_target_"])
    if (most := _most(target)) >= count:
        return
    able = [name for name in choices_of("searcher") if _most(_target(name)) >= count]
    raise ConfigError(
        f"The searcher {target.rpartition('.')[2]} goes by {'one value' if most == 1 else f'{most} values at most'}, "
        f"and this search has {'several' if most == 1 else count}: write searcher={' or searcher='.join(able)}; or "
        f"make one value of them, with objective=mean, worst or chebyshev."
    )


def _summed(value: Any) -> bool:
    """Return whether a value is made of several tasks, or of all."""
    tasks = value if isinstance(value, list) else value.get("tasks")
    return tasks is None or len(tasks) > 1


def _most(target: str) -> int:
    """Return how many values a searcher takes."""
    from evomerge.searchers.base import Needs  # comes with scipy

    return getattr(find_class(target, "searcher"), "needs", Needs()).objectives


def _target(choice: str) -> str:
    settings: Any = OmegaConf.load(CONF / "searcher" / f"{choice}.yaml")
    return settings["_target_"]


def _check_choose(choose: Any) -> None:
    """Hold the form of `objective.choose` against what a front can be chosen by."""
    example = "write knee, or '{at_least: {safety: \"0.98 * base\"}, best: skills}'"
    if choose == KNEE:
        return
    if not isinstance(choose, Mapping) or set(choose) != {"at_least", "best"}:
        raise ConfigError(f"objective.choose is {choose}; {example}.")
    if not isinstance(choose["at_least"], Mapping) or not choose["at_least"] or not isinstance(choose["best"], str):
        raise ConfigError(f"objective.choose is {choose}; {example}.")
    for name, text in choose["at_least"].items():
        where = f"objective.choose.at_least.{name}"
        if not isinstance(text, str | int | float) or isinstance(text, bool) or set("<>=") & set(str(text)):
            raise ConfigError(f"{where} is {text!r}: write a share of the base's score or a number, '0.98 * base'.")
        read_limit(where, f">= {text}")


def _check_chosen(choose: Any, names: Collection[str]) -> None:
    for name in [] if choose == KNEE else [*choose["at_least"], choose["best"]]:
        if name not in names:
            raise ConfigError(f"objective.choose: {unknown('value', name, names)}")
