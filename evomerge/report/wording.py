"""How a report puts numbers into words: the headline, the title line, numbers with their errors.

In: `RunFacts`. Out: plain text, to be escaped where it is shown.
"""

from __future__ import annotations

import math

from evomerge.fitness.objectives import CHEBYSHEV
from evomerge.report.facts import RunFacts
from evomerge.report.scales import LONG
from evomerge.selection.front import Front
from evomerge.selection.statistics import Paired

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
SEARCHERS = {
    **{"CmaEs": "CMA-ES", "Tpe": "TPE", "Hybrid": "Gradient, then CMA-ES", "Random": "Random search"},
    **{"Nsga2": "NSGA-II", "MoCma": "MO-CMA-ES", "Surrogate": "Quadratic model (MAP)", "Lines": "Lines between points"},
}


def number(value: float | None, digits: int = 4) -> str:
    """A number with a true minus sign; a dash for one that is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}" if abs(value) < LONG else f"{value:.{digits}g}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def signed(value: float | None, digits: int = 4) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return text if text[0] in (MINUS, "–") or value is None else f"+{text}"


def with_error(value: float | None, se: float | None, digits: int = 4, sign: bool = False) -> str:
    """`0.7227 ± 0.0074`; without the error where that is not known."""
    text = signed(value, digits) if sign else number(value, digits)
    return text if value is None or se is None or not math.isfinite(se) else f"{text}{PLUS_MINUS}{number(se, digits)}"


def span(seconds: float) -> str:
    """A length of time."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def errors_of(difference: Paired) -> float | None:
    """How many standard errors a paired difference is from zero; None if that is not known."""
    diff, se = difference.diff, difference.se
    return diff / se if diff is not None and se else None


def verdict(difference: Paired) -> str:
    """`better`, `worse` or `same`: what two standard errors allow to say."""
    distance = errors_of(difference)
    if distance is None:
        diff = difference.diff or 0.0
        return "same" if diff == 0 or difference.se is None else "better" if diff > 0 else "worse"
    return "same" if abs(distance) < 2 else "better" if distance > 0 else "worse"


def metric(name: str) -> str:
    """A metric as a person writes it."""
    return name.replace("_", " ")


def deciding(facts: RunFacts, name: str) -> str:
    """What a search of one value goes by, or chose by: a metric, and what is made of it."""
    of = metric(name)
    if facts.aggregate == CHEBYSHEV:
        of = f"minus the largest weighted distance from the experts in {of} (Chebyshev)"
    elif facts.normalised:
        of = f"{of}, normalised between base and expert"
    return of


def valued(facts: RunFacts, name: str, select: bool = False) -> str:
    """The same where models that violate a constraint are shown as well: theirs is no score.

    Args:
        facts: of the run.
        name: of the metric.
        select: whether they are shown on the select items, where constraints may have to hold by standard errors.
    """
    of, violates = deciding(facts, name), "is violated"
    if select and (sure := surely_of(facts)):
        violates = f"does not hold{sure}"
    return f"{of}, or less than the base where a constraint {violates}," if facts.constraints else of


def surely_of(facts: RunFacts) -> str:
    """By how much constraints had to hold on the select items, where that is more than the limits say."""
    limits = facts.summary.limits if facts.summary else None
    return limits.surely if limits else ""


def headline(facts: RunFacts) -> tuple[str, str]:
    """Return the verdict in a few words, and the honest number in one sentence."""
    if facts.summary is None:
        return _unfinished(facts)
    summary = facts.summary
    if summary.front:
        return _of_front(summary.front, summary.items["report"])
    difference, winner = summary.gain, summary.winner
    constant, items = summary.constant, summary.items["report"]
    own = summary.forgetting is not None and summary.forgetting.negated
    if difference.diff is None:
        return "What the merge that was found is worth is not known.", (
            f"The winner or the best constant, {constant}, has no score on the {items:,} report items."
        )
    n = len(facts.forget or winner.tasks)
    over = f" as the mean over {n} tasks" if n > 1 else ""
    short = {
        "better": "The merge that was found is better than the best constant.",
        "same": "The merge that was found cannot be told from the best constant.",
        "worse": "The merge that was found is worse than the best constant.",
    }[verdict(difference)]
    gap = with_error(abs(difference.diff), difference.se)
    gap += " above" if difference.diff > 0 else " below"
    if difference.diff == 0:
        gap = f"no different (±\N{NO-BREAK SPACE}{number(difference.se)}) from"
    distance = errors_of(difference)
    errors = f", {number(abs(distance), 1)} standard errors of the paired difference" if distance else ""
    return short, (
        f"On {items:,} report items that the search never saw, the winner’s {metric(facts.measured)} is "
        f"{number(winner.mean)}{over}: {gap} that of the best constant, {constant}"
        f"{', 0 for all others' if own else ' for every coefficient'}{errors}."
    )


def _of_front(front: Front, items: int) -> tuple[str, str]:
    """Say how many models were found, which one was chosen, and what it gains and costs."""
    many = f"{len(front.points)} models, of which none beats another in all values"
    short = f"The search found {many}." if len(front.points) > 1 else "One model of those found beats all others."
    each = {name: judged(front, name, front.winner.over.get(name)) for name in front.values}
    told = {"better": "better in", "worse": "worse in", "same": "not to be told from it in"}
    names = {said: [name for name in each if each[name] == said] for said in told}
    parts = "; ".join(f"{text} {', '.join(names[said])}" for said, text in told.items() if names[said])
    return short, (
        f"{front.chosen} was chosen on the select items ({front.rule}). On {items:,} report items that the search "
        f"never saw it is, held against the best {front.best_constant.name}, {parts}, by two standard errors of the "
        f"paired difference."
    )


def judged(front: Front, name: str, difference: Paired | None) -> str:
    """Return whether a difference in a value is `better`, `worse`, or the `same`."""
    found = "same" if difference is None else verdict(difference)
    return {"better": "worse", "worse": "better"}.get(found, found) if name in front.minimised else found


def closed(facts: RunFacts) -> str | None:
    """Say how much of the way from the best constant to the experts the winner goes, where that makes sense."""
    if facts.summary is None or facts.front:
        return None
    constant, winner = facts.summary.best_constant.mean, facts.summary.winner.mean
    experts = facts.summary.experts.mean if facts.summary.experts else None
    if constant is None or winner is None or experts is None or experts <= constant or winner <= constant:
        return None
    share = (winner - constant) / (experts - constant)
    if share > 1:
        return "That is more than the experts reach, each on its own task."
    return (
        f"That is {share:.0%} of the way from the best constant to the experts, each on its own task, which no single "
        f"model has to reach."
    )


def _unfinished(facts: RunFacts) -> tuple[str, str]:
    of, budget = f"{facts.done:,}", f"{facts.settings['budget']:,}"
    if not facts.done:
        return "The search has not scored a candidate yet.", "There is nothing to see before the first one."
    if not facts.scored and not facts.losses:
        return "No candidate could be scored.", f"All {of} candidates so far have failed; the warnings say why."
    if facts.done >= facts.settings["budget"]:
        short = f"All {of} candidates are scored, and there is no winner yet."
    else:
        short = f"The search is not complete: candidate {of} of {budget}."
    one = facts.scored and not facts.value_names
    best = f"The best {deciding(facts, facts.metric)} so far is {number(facts.best_so_far[-1][1])}. " if one else ""
    loss = f"The latest {facts.loss} is {number(facts.losses[-1].value)}. " if facts.losses else ""
    return short, (
        f"{best}{loss}These numbers are of items that the search has looked at; what they are worth is known once the "
        f"winner is scored on the report split."
    )


def what(facts: RunFacts) -> str:
    """Return what was searched, in a line."""
    settings = facts.settings
    name = settings["searcher"]["_target_"].rpartition(".")[2]
    searcher = SEARCHERS.get(name, name)
    method = settings["method"]["_target_"].rpartition(".")[2].lower()
    dim = len(facts.run.coordinates)
    return (
        f"{searcher}{f' on {facts.loss}' if facts.losses else ''} · {dim:,} coefficient{'s' if dim != 1 else ''}, by "
        f"{settings['space']['granularity']} · {method} merge of {len(facts.run.identity['experts'])} experts · "
        f"models: {settings['model']['name']} · seed\N{NO-BREAK SPACE}{settings['seed']}"
    )
