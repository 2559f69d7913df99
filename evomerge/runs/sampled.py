"""How the items of a generation are chosen and scored: the settings `fitness.sampling`, `grow`, `approximate` and
`estimate`.

In: the settings of a search. Out: how its samples grow, and what of all of them belongs to its identity; or a refusal.
Runs of earlier versions have none of them: their samples are stratified, do not grow, and are scored as the winner is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.common.arguments import is_kind
from evomerge.common.errors import ConfigError
from evomerge.common.limits import AUTO
from evomerge.common.names import dtype_name, unknown
from evomerge.fitness.capabilities import Exporting
from evomerge.fitness.draws import ADAPTIVE, CHOICES, STRATIFIED
from evomerge.fitness.estimates import FORMS
from evomerge.fitness.sampling import Growth
from evomerge.runs.racing import lags, races_of

if TYPE_CHECKING:
    from evomerge.fitness.base import Fitness
    from evomerge.models.live import LiveModel
    from evomerge.runs.computing import Begun
    from evomerge.searchers.base import Searcher  # comes with scipy, and settings are checked without it

APPROXIMATE = {"bfloat16": 2}
"""What `fitness.approximate` may be, and the bytes of a number in it."""
NESTED = "nested"
"""The rule by which samples grow: a fixed one keeps what it has, and the last generation has all items."""


def check_sampling(settings: Mapping[str, Any]) -> None:
    """Check these settings, as far as nothing else need be known.

    Raises:
        ConfigError: one has another form.
    """
    if (by := drawn_by(settings)) not in CHOICES:
        raise ConfigError(f"fitness.sampling: {unknown('choice', by, CHOICES)}")
    for name, lag in lags(settings["searcher"]).items() if by == ADAPTIVE else ():
        raise ConfigError(
            f"fitness.sampling=adaptive chooses items by all candidates before, and {name}={lag} asks for new ones "
            f"before these are scored: write {name}=0, or fitness.sampling=stratified."
        )
    if (asked := settings["fitness"].get("approximate")) is not None and asked not in (AUTO, *APPROXIMATE):
        raise ConfigError(f"fitness.approximate: {unknown('choice', asked, (AUTO, *APPROXIMATE))}")
    first = settings["fitness"].get("grow")
    if first is not None and not 0 < first < 1:
        raise ConfigError(
            f"fitness.grow={first} is no share of fitness.items to begin with: write a number between 0 and 1, such as "
            f"0.25, or null for all of them from the beginning."
        )
    _check_estimate(settings)


def _check_estimate(settings: Mapping[str, Any]) -> None:
    """Check the settings `fitness.estimate` and `estimate_from`."""
    given, objective = settings["fitness"], settings["objective"]
    form, others = given.get("estimate"), given.get("estimate_from") or []
    if form is not None and form not in FORMS:
        raise ConfigError(f"fitness.estimate: {unknown('choice', form, FORMS)}")
    if not (isinstance(others, list) and all(is_kind(one, "float") and math.isfinite(one) for one in others)):
        raise ConfigError(f"fitness.estimate_from is {others}; write a list of constants, such as [0.3, 0.6].")
    if others and form is None:
        raise ConfigError(f"fitness.estimate_from={others} is for fitness.estimate, which is null: set it as well.")
    if form is None:
        return
    if race := races_of(settings):
        raise ConfigError(
            f"fitness.estimate={form} needs the answers of a candidate to all of its sample, and a race drops it "
            f"before: leave {race} out, or fitness.estimate."
        )
    names = ("forget", "constraints", "normalised")
    other = next((f"objective.{name}" for name in names if objective.get(name)), "")
    if other or objective["aggregate"] not in ("mean", "worst") or objective.get("values"):
        raise ConfigError(
            f"fitness.estimate={form} estimates one value, the mean or the worst of tasks, on all search items; "
            f"{other or 'this objective'} needs others as well: leave one of them out."
        )


def estimate_of(settings: Mapping[str, Any]) -> tuple[str | None, tuple[float, ...]]:
    """Return how values are estimated, and the constants that this rests on beside base and experts."""
    given = settings["fitness"]  # earlier versions have no such settings
    return given.get("estimate"), tuple(dict.fromkeys(map(float, given.get("estimate_from") or ())))


def check_approximate(settings: Mapping[str, Any], live: LiveModel, fitness: Fitness) -> None:
    """Refuse `fitness.approximate` where it would save nothing.

    Raises:
        ConfigError: it would.
    """
    asked = settings["fitness"].get("approximate")
    if asked is not None and (why := _saves_nothing(asked, live, fitness)):
        raise ConfigError(f"fitness.approximate={asked} saves nothing: {why}. Leave it out.")


def approximated(
    settings: Mapping[str, Any], live: LiveModel, fitness: Fitness, before: Begun | None, gpus: int
) -> tuple[dict[str, Any], str]:
    """Return the settings of a search with a choice in place of `fitness.approximate=auto`, and the choice as a
    sentence; an empty one where nothing was to be chosen.

    A run that goes on keeps what it began with. Else a product of matrices is timed in both dtypes, on a CPU.

    Args:
        settings: of the search, checked.
        live: the model.
        fitness: of the search.
        before: how the run began, if it goes on.
        gpus: of each worker, where there are some.
    """
    given = settings["fitness"]
    if given.get("approximate") != AUTO:
        return dict(settings), ""
    chosen, why = (before.approximate, "as this run began") if before else _choose(live, fitness, gpus)
    in_what = f"in {chosen}" if chosen else "as the winner is"
    return {**settings, "fitness": {**given, "approximate": chosen}}, f"search items are scored {in_what}: {why}"


def _choose(live: LiveModel, fitness: Fitness, gpus: int) -> tuple[str | None, str]:
    """Return the dtype in which search items are scored, None for that of the model, and why."""
    import torch

    from evomerge.models.computing import MUCH, product_seconds

    (name,) = APPROXIMATE
    if why := _saves_nothing(name, live, fitness):
        return None, why
    kind = "GPU" if gpus else next(live.model.parameters()).device.type
    if kind != "cpu":
        return None, f"nobody has measured what {name} saves on a {kind}"
    times = product_seconds((live.dtype, getattr(torch, name)))
    ratio = times[live.dtype] / times[getattr(torch, name)]
    why = f"here a product in {dtype_name(live.dtype)} takes {ratio:.1f} times as long as in {name}"
    return (name if ratio > MUCH else None), why


def _saves_nothing(asked: str, live: LiveModel, fitness: Fitness) -> str:
    """Return why scoring in another dtype saves nothing; an empty text where it may."""
    if live.compute:
        return (
            f"this base is kept in {dtype_name(live.dtype)}, and scored in {dtype_name(live.compute)} since that is "
            f"faster here, or was asked for (model.compute)"
        )
    if live.dtype.itemsize <= APPROXIMATE[asked]:
        return f"this base is kept and scored in {dtype_name(live.dtype)}"
    if isinstance(fitness, Exporting):
        return f"a command is handed a directory, which is written in {dtype_name(live.dtype)} whatever was computed"
    return ""


def drawn_by(settings: Mapping[str, Any]) -> str:
    """Return how the items of a generation are drawn."""
    return settings["fitness"].get("sampling") or STRATIFIED


def changing(settings: Mapping[str, Any]) -> str:
    """Return the setting by which generations have other items each; nothing where all have the same."""
    fitness = settings["fitness"]
    if fitness["rotate"]:
        return "fitness.rotate=true"
    return "fitness.sampling=adaptive" if drawn_by(settings) == ADAPTIVE else "fitness.grow" * bool(fitness.get("grow"))


def unusual(settings: Mapping[str, Any]) -> list[str]:
    """Return the settings by which search items are chosen, or scored, in another way than usual."""
    fitness, by = settings["fitness"], drawn_by(settings)
    grow = fitness.get("grow")
    return [
        *(["fitness.rotate=true"] if fitness["rotate"] else []),
        *([f"fitness.grow={grow:g}"] if grow else []),
        *([f"fitness.sampling={by}"] if by != STRATIFIED else []),
        *([f"fitness.approximate={narrow}"] if (narrow := fitness.get("approximate")) else []),
    ]


def check_lag(settings: Mapping[str, Any], searcher: Searcher) -> None:
    """Refuse a searcher that asks ahead, whatever its settings say, where what comes next needs what was asked before.

    Raises:
        ConfigError: it is one.
    """
    from evomerge.searchers.base import later_lag_of

    setting = races_of(settings) or ("fitness.sampling=adaptive" if drawn_by(settings) == ADAPTIVE else "")
    if setting and (lag := later_lag_of(searcher)):
        raise ConfigError(
            f"The searcher {type(searcher).__name__} asks {lag} batches ahead, and {setting} needs the trials of all "
            f"batches before: give it a lag of 0, or leave {setting} out."
        )


def to_go_on(growth: Growth | None) -> str:
    """Return what a search needs to go on whose budget is spent, as a sentence; by how its samples grow."""
    if growth is None:
        return "Raise `budget` and run the same command again to go on."
    return "Its samples have grown with its budget (fitness.grow), so a larger one needs another run directory."


def growth_of(settings: Mapping[str, Any]) -> Growth | None:
    """Return how samples grow over the candidates of a budget; `budget.grown` says how many these are."""
    first = settings["fitness"].get("grow")
    return None if first is None else Growth(first, max(settings["budget"], 1))


def sampling_identity(settings: Mapping[str, Any], growth: Growth | None) -> dict[str, Any]:
    """Return what of these settings makes another search; nothing where it is the search that it always was.

    Where samples grow, the budget belongs to it: with a larger one, generations before would have had fewer items. The
    rule belongs to it as well, since earlier versions had another one.
    """
    by, (form, others) = drawn_by(settings), estimate_of(settings)
    return {
        **({"sampling": by} if by != STRATIFIED else {}),
        **({"grow": [growth.first, growth.points, NESTED]} if growth else {}),
        **({"estimate": [form, *others]} if form else {}),
        **({"approximate": asked} if (asked := settings["fitness"].get("approximate")) else {}),
    }
