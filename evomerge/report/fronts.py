"""What a page shows of a search with several values: the front in pairs of values, its numbers, and what was traded.

In: `RunFacts`. Out: charts, rows of a table, and grids of coefficients over the points. Scores of a value that is to be
small are drawn as the metric has them; its axis says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from evomerge.report.charts import PLAIN_DOTS, Chart, Line, Mark, up
from evomerge.report.facts import RunFacts
from evomerge.report.grids import ALL, Cell, CoefficientMap, frozen_in, grid_of
from evomerge.report.scales import Axis, axis, robust
from evomerge.report.wording import MINUS, judged, metric, number, with_error
from evomerge.runs.fronts import missed_of, named, titled
from evomerge.selection.front import Front, FrontPoint
from evomerge.selection.statistics import Paired, Score
from evomerge.selection.summary import Summary
from evomerge.trials import Trial

PAIRED = 3
"""Up to so many values are drawn in pairs, more of them as lines from value to value."""
FAR = 2.0
"""The base is left out of a picture if it lies farther from the others than so many times their range: they would be
one spot beside it.
"""
KINDS = {"base": "base", "experts": "experts"}


@dataclass(frozen=True)
class Gain:
    """A difference in words, and whether it is `better`, `worse` or the `same`, by two standard errors."""

    text: str
    verdict: str


@dataclass(frozen=True)
class InValue:
    """What a model is worth in one value: its score, and what it gains over the best constant and over the experts."""

    score: str
    over: Gain
    experts: Gain


@dataclass(frozen=True)
class Row:
    """A model in all values: its name, whether it was chosen, and its lines."""

    name: str
    chosen: bool
    lines: Sequence[InValue]


def pictures(facts: RunFacts) -> list[tuple[str, Chart]]:
    """The front on the report split, with titles: a chart for each two values, or one over all where there are many."""
    front = facts.front
    if front is None:
        return []
    if len(front.values) > PAIRED:
        return [("All values", _across(front))]
    return [(f"{other} over {one}", _pair(front, one, other)) for one, other in combinations(front.values, 2)]


def legend(front: Front) -> list[tuple[str, str]]:
    """What the marks of the pictures are, one legend for all."""
    experts = front.experts if len(front.values) <= PAIRED else []
    base = [front.base] if len(front.values) > PAIRED or len(_far(front)) < len(front.values) - 1 else []
    kinds = {_kind(front, model) for model in [*base, *experts, front.best_constant, *front.points]}
    texts = {
        "winner": f"{front.chosen}, the winner",
        "finalist": "another point of the front",
        "constant": f"best {front.best_constant.name}",
        "base": "base",
        "experts": "experts, each on its own task: no single model",
    }
    return [(kind, text) for kind, text in texts.items() if kind in kinds]


def clouds(facts: RunFacts) -> list[tuple[str, Chart]]:
    """All candidates on the search items, with titles, a chart for each two values; none where there are many."""
    names, scored = facts.value_names, [dot.trial for dot in facts.scored]
    if not 2 <= len(names) <= PAIRED or not scored:
        return []
    return [
        (f"Candidates: {names[j]} over {names[i]}", _cloud(facts, scored, i, j))
        for i, j in combinations(range(len(names)), 2)
    ]


def cloud_legend(facts: RunFacts) -> list[tuple[str, str]]:
    """What the marks of the clouds are, one legend for all."""
    found = [("dot", "a candidate")]
    if any(violation > 0 for dot in facts.scored for violation in dot.trial.violations):
        found.append(("censored", "one that violates a constraint"))
    if facts.front and any(point.trial for point in facts.front.points):
        found += [("finalist", "a point of the front"), ("winner", "the winner")]
    return found


def rows(front: Front, starred: bool = False) -> list[Row]:
    """The numbers of the front: base, experts, best constant, and each point.

    Args:
        front: the front.
        starred: whether something stands below the table of the winner.
    """
    models, found = [front.base, *front.experts, front.best_constant, *front.points], list[Row]()
    for model in models:
        chosen = model.name == front.chosen
        name = label_of(front, model) + " *" * (starred and chosen)
        found.append(Row(name, chosen, [_line(front, model, value) for value in front.values]))
    return found


def maps(facts: RunFacts) -> list[CoefficientMap]:
    """The coefficients of the points side by side: a grid for each variable and expert, a column for each point."""
    front, recipe = facts.front, facts.run.recipe
    if front is None or recipe is None:
        return []
    shared = facts.settings["space"]["sharing"] == "shared"
    experts, found = list(recipe.row_names), list[CoefficientMap]()
    columns = tuple(str(i) for i, _ in enumerate(front.points, 1))
    for variable, groups in front.points[0].coefficients.items():
        held = frozen_in(facts, variable, groups)
        centre = float(facts.summary.select.constant) if facts.summary and variable == "weight" else None
        for expert in experts[:1] if shared else experts:
            cells = {
                group: tuple(
                    Cell(point.coefficients[variable][group][expert], (group, expert) in held) for point in front.points
                )
                for group in groups
            }
            found.append(grid_of(variable, ALL if shared else expert, columns, cells, centre))
    return found


def notes(summary: Summary, front: Front) -> list[str]:
    """What is said below the table of a front."""
    volumes, limits = front.hypervolume, summary.limits
    found = [
        f"The points cover a hypervolume of {volumes['select']:.4g} on the select items, where all constants cover "
        f"{volumes['constants']:.4g}, and of {volumes['report']:.4g} on the report items. It counts from the worst "
        f"score of base and constants on select in each value."
    ]
    if len(front.values) <= PAIRED and (far := _far(front)):
        found.insert(
            0,
            f"The base lies so far from the others in {', '.join(titled(front, name) for name in far)} that pictures "
            f"with {'it' if len(far) == 1 else 'one of these'} leave it out.",
        )
    if front.dominated:
        found.append(f"Fell out on the select items, since a point is better: {', '.join(front.dominated)}.")
    if front.violating:
        found.append(f"Fell out since they violate a constraint there: {', '.join(front.violating)}.")
    if limits:
        if listed := ", ".join(front.unsure):
            found.append(f"Fell out since they hold constraints there, but not{limits.surely}: {listed}.")
        surely = f",{limits.surely} on the select items" if limits.sure else ""
        found.append(f"To keep: {', '.join(f'{name} {text}' for name, text in limits.wanted.items())}{surely}.")
        missed = {point.name: said for point in front.points if (said := missed_of(limits, point))}
        found += [f"{name}: {said}." for name, said in missed.items()] or ["All points do, on both splits."]
    return found


def traded(front: Front) -> str:
    """What was traded for what, as a sentence; nothing where that is not known."""
    said = front.trades.said if front.trades else ""
    return f"{said[:1].upper()}{said[1:]}.".replace("(-", f"({MINUS}") if said else ""


def label_of(front: Front, model: FrontPoint) -> str:
    """Return what a model is called on the page."""
    if model.name == "experts":
        return "experts, each on its own task"
    return f"best {model.name}" if model.name == front.best_constant.name else named(front, model)


def axis_label(front: Front, name: str) -> str:
    """Return what an axis of a value is called."""
    of = metric(front.metrics[name])
    return f"{titled(front, name)}{'' if of in titled(front, name) else f', {of}'}{_lower(name in front.minimised)}"


def _lower(small: bool) -> str:
    return " (lower is better)" if small else ""


def _pair(front: Front, one: str, other: str) -> Chart:
    """Draw the front in two values, with one standard error to each side."""
    models = [front.base, *front.experts, front.best_constant, *front.points]
    models = models[bool({one, other} & set(_far(front))) :]
    known = [model for model in models if _mean(model, one) is not None and _mean(model, other) is not None]
    x, y = (_axis(front, known, name) for name in (one, other))
    # the winner above all, and the best constant above the point that it may be
    order = sorted(known, key=lambda model: (model.name == front.chosen, model is front.best_constant))
    marks = [_mark(front, model, x.at(_at(model, one)), up(y, _at(model, other))) for model in order]
    errors = "".join(_error(model, one, other, x, y) for model in known)
    lines = [Line(errors, "error")]
    if len(front.values) == 2:
        lines.insert(0, Line(_stairs(front, x, y), "front", "no point lies beyond this line"))
    each = "; ".join(
        f"{model.name} {number(_at(model, one), 3)} and {number(_at(model, other), 3)}" for model in front.points
    )
    words = f"{other} over {one} on the report items, of each point of the front: {each}."
    return Chart(x, y, words, marks, lines, height=360 if len(front.values) == 2 else 250)


def _across(front: Front) -> Chart:
    """Draw a line for each point over all values, each scaled from the worst (0) to the best (1) of what is drawn."""
    models = [front.base, front.best_constant, *front.points]
    names = tuple(titled(front, name) for name in front.values)
    x = Axis(-0.3, len(front.values) - 0.7, "", tuple(map(float, range(len(front.values)))), names)
    y = axis([0.0, 1.0], "from the worst to the best of these models in each value")
    scales = {}
    for name in front.values:
        found = [mean for model in models if (mean := _mean(model, name)) is not None]
        ends = (max(found), min(found)) if name in front.minimised else (min(found), max(found))
        scales[name] = (ends[0], ends[1] - ends[0] or 1.0)
    lines, marks = [], []
    for model in models:
        places = [
            (x.at(i), up(y, (mean - scales[name][0]) / scales[name][1]))
            for i, name in enumerate(front.values)
            if (mean := _mean(model, name)) is not None
        ]
        kind = _kind(front, model)
        lines.append(Line("M" + "L".join(f"{a} {b}" for a, b in places), f"across {kind}", _told(front, model)))
        drawn = [_mark(front, model, a, b) for a, b in places]
        marks += [*drawn[:1], *(replace(mark, label="") for mark in drawn[1:])]
    words = f"{len(front.points)} points of the front over the values {', '.join(front.values)}"
    return Chart(x, y, words, marks, lines, height=340)


def _cloud(facts: RunFacts, trials: Sequence[Trial], i: int, j: int) -> Chart:
    """Draw all candidates in two values on the search items, and which of them are points of the front."""
    names, signs = facts.value_names, [-1.0 if name in facts.minimised else 1.0 for name in facts.value_names]
    places = {
        (t.batch, t.index): tuple(sign * v for sign, v in zip(signs, t.values or (), strict=True)) for t in trials
    }
    axes = []
    for k in (i, j):
        kept, _ = robust([signs[k] * place[k] for place in places.values()])
        label = f"{names[k]} on the search items, {metric(facts.metric_of(names[k]))}{_lower(signs[k] < 0)}"
        axes.append(axis([signs[k] * value for value in kept], label))
    x, y = axes
    points = {point.trial: point for point in (facts.front.points if facts.front else ()) if point.trial}
    plain = [t for t in trials if (t.batch, t.index) not in points]
    numbers = {(dot.trial.batch, dot.trial.index): dot.number for dot in facts.scored}

    def mark(trial: Trial) -> Mark:
        at, place = (trial.batch, trial.index), places[trial.batch, trial.index]
        kind = "censored" if any(v > 0 for v in trial.violations) else "dot"
        said = f"candidate {numbers[at]}: {names[i]} {number(place[i])}, {names[j]} {number(place[j])}"
        if facts.front and at in points:
            point = points[at]
            kind = "winner" if point.name == facts.front.chosen else "finalist"
            return Mark(x.at(place[i]), up(y, place[j]), kind, f"{point.name}, {said}", _number(point))
        return Mark(x.at(place[i]), up(y, place[j]), kind, said)

    lines, marks = [], [mark(t) for t in trials if (t.batch, t.index) in points]
    if len(plain) > PLAIN_DOTS:
        at = [places[t.batch, t.index] for t in plain]
        lines.append(Line("".join(f"M{x.at(place[i])} {up(y, place[j])}h0" for place in at), "dots"))
    else:
        marks = [mark(t) for t in plain] + marks
    words = f"{names[j]} over {names[i]} of {len(trials)} candidates on the search items."
    return Chart(x, y, words, marks, lines, height=300 if len(names) == 2 else 250)


def _axis(front: Front, models: Sequence[FrontPoint], name: str) -> Axis:
    return axis(_ends(models, name), axis_label(front, name), 5)


def _ends(models: Sequence[FrontPoint], name: str) -> list[float]:
    """Return where the error bars of models end in a value."""
    return [_at(model, name) + way * _se(model.report[name]) for model in models for way in (-1, 1)]


def _far(front: Front) -> list[str]:
    """Return the values in which the base lies too far from all others to be drawn with them."""
    models, found = [*front.experts, front.best_constant, *front.points], list[str]()
    for name in front.values:
        ends = _ends([model for model in models if _mean(model, name) is not None], name)
        if not ends or _mean(front.base, name) is None:
            continue
        room = FAR * (max(ends) - min(ends))
        if not min(ends) - room <= _at(front.base, name) <= max(ends) + room:
            found.append(name)
    return found


def _mark(front: Front, model: FrontPoint, x: float, y: float) -> Mark:
    return Mark(x, y, _kind(front, model), _told(front, model), _number(model))


def _kind(front: Front, model: FrontPoint) -> str:
    if model.name == front.chosen:
        return "winner"
    return KINDS.get(model.name, "finalist" if model in front.points else "constant")


def _number(model: FrontPoint) -> str:
    head, _, tail = model.name.rpartition("_")
    return tail if head == "point" else ""


def _told(front: Front, model: FrontPoint) -> str:
    """Return what a pointer is told of a model."""
    each = [f"{name} {with_error(one.mean, one.se)}" for name, one in model.report.items()]
    return f"{label_of(front, model)}: {', '.join(each)}"


def _error(model: FrontPoint, one: str, other: str, x: Axis, y: Axis) -> str:
    """Return the two error bars of a model as a path."""
    (a, da), (b, db) = ((_at(model, name), _se(model.report[name])) for name in (one, other))
    return f"M{x.at(a - da)} {up(y, b)}H{x.at(a + da)}M{x.at(a)} {up(y, b - db)}V{up(y, b + db)}"


def _stairs(front: Front, x: Axis, y: Axis) -> str:
    """Return the line beyond which no point lies in two values, as a path."""
    one, other = front.values
    signs = [-1.0 if name in front.minimised else 1.0 for name in (one, other)]
    found = sorted(
        ((signs[0] * _at(p, one), signs[1] * _at(p, other)) for p in front.points if _mean(p, one) is not None),
        reverse=True,
    )
    steps, best = list[tuple[float, float]](), float("-inf")
    for a, b in found:  # from the right: each that is higher than all before it
        if b > best:
            steps.append((signs[0] * a, signs[1] * b))
            best = b
    (a, b), *rest = steps
    floor = 100.0 if signs[1] > 0 else 0.0
    path = f"M{x.at(a)} {floor}V{up(y, b)}"
    for a, b in rest:
        path += f"H{x.at(a)}V{up(y, b)}"
    return f"{path}H{0 if signs[0] > 0 else 100}"


def _line(front: Front, model: FrontPoint, name: str) -> InValue:
    score = model.report.get(name)
    text = with_error(score.mean, score.se, 3) if score else "–"
    return InValue(text, _gain(front, name, model.over), _gain(front, name, model.experts))


def _gain(front: Front, name: str, over: Mapping[str, Paired]) -> Gain:
    found = over.get(name)
    return Gain(with_error(found.diff, found.se, 3, sign=True) if found else "", judged(front, name, found))


def _mean(model: FrontPoint, name: str) -> float | None:
    score = model.report.get(name)
    return score.mean if score else None


def _at(model: FrontPoint, name: str) -> float:
    return _mean(model, name) or 0.0


def _se(score: Score) -> float:
    return score.se if score.se is not None and score.se == score.se else 0.0
