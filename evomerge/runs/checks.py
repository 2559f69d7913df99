"""The fitness of a search, made of its settings before anything is read, and held against what it will be asked.

In: the settings `fitness`; later the live model and the items. Out: the fitness, or a refusal. Every verb that scores
makes it first: what is wrong with a user's file or class is then said within a second. What a fitness can do is asked
here (`fitness/capabilities.py`), and by whoever uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import Headed, Reads, check_whole, requirements
from evomerge.fitness.encoding import check_kind
from evomerge.fitness.items import Item
from evomerge.fitness.values import DISTANCE
from evomerge.models.live import LiveModel
from evomerge.runs.config import build
from evomerge.runs.objectives import NEAR, WITHIN


def make_fitness(settings: Mapping[str, Any]) -> Fitness:
    """Return the fitness of these settings, as yet without items and heads.

    Args:
        settings: the settings `fitness`.

    Raises:
        ConfigError: it cannot be made, as where a user's file cannot be imported, is no fitness, or has no such metric.
    """
    fitness: Fitness = build(settings, "fitness")
    check_whole(fitness)
    if not isinstance(fitness, Reads):  # whose metrics may be those of its tasks
        check_metrics(fitness, settings["metric"], settings["report_metric"])
    return fitness


def check_metrics(fitness: Fitness, metric: str, report_metric: str) -> None:
    """Refuse metrics that a fitness does not give.

    Raises:
        ConfigError: there is one.
    """
    for name, wanted in (("metric", metric), ("report_metric", report_metric)):
        if wanted in fitness.metrics or (wanted, name) == (DISTANCE, "report_metric"):  # see `check_reported`
            continue
        if wanted == DISTANCE:
            raise ConfigError(
                f"fitness.metric={DISTANCE} would be maximised, and the base lies nearest to itself: write {NEAR}, or "
                f"{WITHIN}."
            )
        raise ConfigError(f"fitness.{name} is '{wanted}'; this fitness gives {', '.join(fitness.metrics)}.")


def check_asked(fitness: Fitness, items: Mapping[str, Mapping[str, Sequence[Item]]], live: LiveModel) -> None:
    """Refuse items that this live model cannot be asked.

    Args:
        fitness: asks.
        items: split -> task -> items.
        live: the base.

    Raises:
        ConfigError: it has no language-modelling head, or reads texts where the items are images, or the other way.
    """
    if requirements(fitness).language_head and live.model.get_output_embeddings() is None:
        raise ConfigError(
            f"The fitness asks what a model says next, and a {type(live.model).__name__} has no language-modelling "
            f"head: write model.auto_class=AutoModelForCausalLM."
        )
    if isinstance(fitness, Headed):
        for chosen in items.values():
            check_kind(live.processor, chosen)
