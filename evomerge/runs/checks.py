"""What is checked of a fitness as early as it can be, by every verb that will score with it.

In: the settings `fitness`, and the live model and the items where they are there. Out: nothing, or a refusal. A fitness
that needs neither models nor items is made before any of them are read: what is wrong with a user's file is then said
within a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Fitness
from evomerge.fitness.encoding import check_kind
from evomerge.fitness.items import Item
from evomerge.models.live import LiveModel
from evomerge.runs.config import build, classes, takes


def first_fitness(settings: Mapping[str, Any]) -> Fitness | None:
    """Return a fitness that needs neither models nor items, made before they are read; None where there is no such.

    Args:
        settings: the settings `fitness`.

    Raises:
        ConfigError: it cannot be made, as where a user's file cannot be imported, or has no such metric.
    """
    if reads_items(settings) or takes(settings, "heads"):
        return None
    fitness: Fitness = build(settings, "fitness")
    check_metrics(settings, fitness)
    return fitness


def check_metrics(settings: Mapping[str, Any], fitness: Fitness) -> None:
    """Refuse metrics that a fitness does not give.

    Args:
        settings: the settings `fitness`.
        fitness: made of them.

    Raises:
        ConfigError: there is one.
    """
    for name in ("metric", "report_metric"):
        if settings[name] not in fitness.metrics:
            raise ConfigError(f"fitness.{name} is '{settings[name]}'; this fitness gives {', '.join(fitness.metrics)}.")


def check_asked(
    settings: Mapping[str, Any], live: LiveModel, items: Mapping[str, Mapping[str, Sequence[Item]]]
) -> None:
    """Refuse items that this live model cannot be asked.

    Args:
        settings: the settings `fitness`.
        live: the base.
        items: split -> task -> items.

    Raises:
        ConfigError: it has no language-modelling head, or reads texts where the items are images, or the other way.
    """
    if reads_items(settings) and live.model.get_output_embeddings() is None:
        raise ConfigError(
            f"The fitness asks what a model says next, and a {type(live.model).__name__} has no language-modelling "
            f"head: write model.auto_class=AutoModelForCausalLM."
        )
    if takes(settings, "heads"):
        for chosen in items.values():
            check_kind(live.processor, chosen)


def reads_items(settings: Mapping[str, Any]) -> bool:
    """Return whether the fitness of these settings reads its items by itself, as those of language models do."""
    return hasattr(next(classes(settings)), "read")
