"""How the items of a generation are chosen and scored: the settings `fitness.sampling`, `grow` and `approximate`.

In: the settings of a search. Out: how its samples grow, and what of all three belongs to its identity; or a refusal.
Runs of earlier versions have none of them: their samples are stratified, do not grow, and are scored as the winner is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import ConfigError
from evomerge.common.names import dtype_name, unknown
from evomerge.fitness.capabilities import Exporting
from evomerge.fitness.draws import ADAPTIVE, CHOICES, STRATIFIED
from evomerge.fitness.sampling import Growth
from evomerge.runs.racing import alpha_of, lags

if TYPE_CHECKING:
    from evomerge.fitness.base import Fitness
    from evomerge.models.live import LiveModel
    from evomerge.searchers.base import Searcher  # comes with scipy, and settings are checked without it

APPROXIMATE = {"bfloat16": 2}
"""What `fitness.approximate` may be, and the bytes of a number in it."""


def check_sampling(settings: Mapping[str, Any]) -> None:
    """Check these settings, as far as nothing else need be known.

    Raises:
        ConfigError: one has another form.
    """
    if (by := drawn_by(settings)) not in CHOICES:
        raise ConfigError(f"fitness.sampling: {unknown('choice', by, CHOICES)}")
    if by == ADAPTIVE and (lag := next(lags(settings["searcher"]), 0)):
        raise ConfigError(
            f"fitness.sampling=adaptive chooses items by all candidates before, and searcher.lag={lag} asks for new "
            f"ones before these are scored: write searcher.lag=0, or fitness.sampling=stratified."
        )
    if (asked := settings["fitness"].get("approximate")) is not None and asked not in APPROXIMATE:
        raise ConfigError(f"fitness.approximate: {unknown('choice', asked, APPROXIMATE)}")
    first = settings["fitness"].get("grow")
    if first is not None and not 0 < first < 1:
        raise ConfigError(
            f"fitness.grow={first} is no share of fitness.items to begin with: write a number between 0 and 1, such as "
            f"0.25, or null for all of them from the beginning."
        )


def check_approximate(settings: Mapping[str, Any], live: LiveModel, fitness: Fitness) -> None:
    """Refuse `fitness.approximate` where it would save nothing.

    Raises:
        ConfigError: it would.
    """
    asked = settings["fitness"].get("approximate")
    if asked is None:
        return
    why = ""
    if live.compute:
        why = (
            f"this base is kept in {dtype_name(live.dtype)}, and scored in {dtype_name(live.compute)} since that is "
            f"faster here, or was asked for (model.compute)"
        )
    elif live.dtype.itemsize <= APPROXIMATE[asked]:
        why = f"this base is kept and scored in {dtype_name(live.dtype)}"
    elif isinstance(fitness, Exporting):
        why = f"a command is handed a directory, which is written in {dtype_name(live.dtype)} whatever was computed"
    if why:
        raise ConfigError(f"fitness.approximate={asked} saves nothing: {why}. Leave it out.")


def drawn_by(settings: Mapping[str, Any]) -> str:
    """Return how the items of a generation are drawn."""
    return settings["fitness"].get("sampling") or STRATIFIED


def changing(settings: Mapping[str, Any]) -> str:
    """Return the setting by which generations have other items each; nothing where all have the same."""
    fitness = settings["fitness"]
    if fitness["rotate"]:
        return "fitness.rotate=true"
    return "fitness.sampling=adaptive" if drawn_by(settings) == ADAPTIVE else "fitness.grow" * bool(fitness.get("grow"))


def check_lag(settings: Mapping[str, Any], searcher: Searcher) -> None:
    """Refuse a searcher that asks ahead, whatever its settings say, where what comes next needs what was asked before.

    Raises:
        ConfigError: it is one.
    """
    from evomerge.searchers.base import lag_of

    raced = alpha_of(settings) is not None
    setting = "racing.alpha" if raced else "fitness.sampling=adaptive" if drawn_by(settings) == ADAPTIVE else ""
    if setting and (lag := lag_of(searcher)):
        raise ConfigError(
            f"The searcher {type(searcher).__name__} asks {lag} batches ahead, and {setting} needs the trials of all "
            f"batches before: give it a lag of 0, or leave {setting} out."
        )


def to_go_on(settings: Mapping[str, Any]) -> str:
    """Return what a search needs to go on whose budget is spent, as a sentence."""
    if settings["fitness"].get("grow") is None:
        return "Raise `budget` and run the same command again to go on."
    return "Its samples have grown with its budget (fitness.grow), so a larger one needs another run directory."


def growth_of(settings: Mapping[str, Any]) -> Growth | None:
    """Return how samples grow over the candidates of a budget; `budget.grown` says how many these are."""
    first = settings["fitness"].get("grow")
    return None if first is None else Growth(first, max(settings["budget"], 1))


def sampling_identity(settings: Mapping[str, Any], growth: Growth | None) -> dict[str, Any]:
    """Return what of these settings makes another search; nothing where it is the search that it always was.

    Where samples grow, the budget belongs to it: with a larger one, generations before would have had fewer items.
    """
    by = drawn_by(settings)
    return {
        **({"sampling": by} if by != STRATIFIED else {}),
        **({"grow": [growth.first, growth.points]} if growth else {}),
        **({"approximate": asked} if (asked := settings["fitness"].get("approximate")) else {}),
    }
