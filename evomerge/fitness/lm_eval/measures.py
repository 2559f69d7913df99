"""What tasks of lm-eval are measured by: the metric that `score` stands for.

In: the tasks of a benchmark, and the setting `fitness.tasks.<task>.metric`. Out: the name of one metric that all of
them have for single documents: the one that was set, else the first of their metric_list. A metric that is one number
of all documents together (mcc, f1, bleu) has none of a document, so it is refused by name, as are metrics of which
nobody says whether more is better, and groups whose tasks are measured by different metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest
from evomerge.fitness.lm_eval.documents import Benchmark
from evomerge.fitness.lm_eval.metrics import SMOOTH, direction, metric_names, true_name


def common_metrics(tasks: Sequence[Any]) -> list[str]:
    """Return the metrics that all tasks of a group have for single documents."""
    names = [metric_names(task) for task in tasks]
    return [name for name in names[0] if all(name in others for others in names)]


def find_measure(benchmark: Benchmark, given: Any) -> str:
    """Return the metric that a benchmark is measured by.

    Args:
        benchmark: its tasks.
        given: the setting, in lm-eval's words or in ours; None for what the tasks say.

    Raises:
        ConfigError: there is no such metric of single documents, or the tasks of a group do not agree.
    """
    tasks, setting = benchmark.tasks, f"fitness.tasks.{benchmark.name}"
    known = [*common_metrics(tasks), SMOOTH]
    if given is not None:
        ours = _ours(tasks, str(given))
        if ours in known:
            return ours
        near = nearest(str(given), known, cutoff=0.0)
        raise ConfigError(
            f"{setting}.metric is '{given}', which {tasks[0].config.task} does not have for single documents. Did you "
            f"mean '{near[0]}'? There is {', '.join(known)}."
        )
    firsts = [next(iter(task.aggregation()), "nothing") for task in tasks]
    found = [_ours([task], first) for task, first in zip(tasks, firsts, strict=True)]
    if len(set(found)) > 1:
        members = ", ".join(f"{task.config.task} by {first}" for task, first in zip(tasks, firsts, strict=True))
        raise ConfigError(
            f"{setting} is a group whose tasks are measured by different metrics, which have no common mean: "
            f"{members}. Give each a line of its own under fitness.tasks, or write {_instead(setting, known)}."
        )
    if found[0] in known:
        return found[0]
    if firsts[0] in tasks[0].aggregation() and direction(tasks[0], firsts[0]) is None:
        why = "nothing says whether more of it is better: write higher_is_better beside it in the metric_list"
    else:
        why = "it is one number of all documents together, where evomerge compares models document by document"
    raise ConfigError(
        f"{setting}: {tasks[0].config.task} is measured by {firsts[0]}, and {why}. Or write "
        f"{_instead(setting, known)}, and `score` is that."
    )


def _ours(tasks: Sequence[Any], name: str) -> str:
    """Return what a metric of lm-eval's name is called here, where it is one of single documents."""
    metric, comma, which = name.partition(",")
    return f"{true_name(tasks[0], metric)}{comma}{which}" if metric in tasks[0].aggregation() else name


def _instead(setting: str, known: Sequence[str]) -> str:
    return " or ".join(f"{setting}.metric={name}" for name in known[:3] if "," not in name)
