"""What a model scored on one document, in numbers of which higher is better.

In: a query and what a model says to its instances. Out: lm-eval's own metrics of that document, and `log_probability`,
which is smooth and so ranks candidates better than accuracy on few documents (natural logarithms):

    multiple_choice          of the reference among the choices: log softmax over their log-likelihoods; where the task
                             is measured by acc_norm, each times (mean length of the choices / its length), so that
                             the most probable choice is the one that acc_norm takes
    loglikelihood            of the reference after its context, divided by its bytes in UTF-8
    generate_until           the same: no decoding is needed for it
    loglikelihood_rolling    of the text, divided by its bytes

Item by item this correlates with acc_norm by .58 and .61 on SIQA and PIQA (SmolLM2-135M and two merges of it, 50 items
each), the softmax without lengths by .05 and .28. The log-likelihood of the reference alone would follow how much a
model expects the form of the answers, which experts learn first, and not whether it tells them apart.

Metrics of which lm-eval reports the mean over documents are as lm-eval has them. Where lower is better, what is given
is minus the metric, and is called so: `minus_brier_score`, `minus_bits_per_byte`. Perplexities are here minus their
logarithm for each document (divided by its words or bytes), `minus_log_word_perplexity`, so their mean weighs all
documents alike, where lm-eval's weighs long ones more. What is nothing but a number of all documents together (f1, mcc,
bleu) is left out, and so is a metric of which nobody says whether more is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.common.errors import ConfigError

SMOOTH = "log_probability"
COUNTED = {"word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": math.log(2)}
"""Metrics that lm-eval computes of (log-likelihood, count) pairs, and what the quotient is divided by."""
LOGARITHMS = ("word_perplexity", "byte_perplexity", "perplexity")
"""Metrics of whose documents lm-eval keeps log-likelihoods; it exponentiates their mean."""
NEGATED = ("bits_per_byte", "brier_score")
"""Further metrics that lm-eval computes of more than the mean of a number; of these, less is better."""
LENGTHS: dict[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}
"""Metrics that divide the log-likelihood of a choice by its length, and by which."""
JOINT = ("likelihood", "bypass")
"""Metrics that lm-eval calls means, but that are no numbers of a document."""


def metric_names(task: Any) -> dict[str, tuple[str, str]]:
    """Return the metrics that a task has for single documents: our name -> (its name, the filter of the answer).

    Our name is `true_name` for the first filter; for others `metric,filter`, as lm-eval writes it.
    """
    from lm_eval.api.metrics import mean, nanmean

    aggregation = task.aggregation()
    single = [
        name
        for name in aggregation
        if name in LOGARITHMS
        or name in NEGATED
        or (aggregation[name] in (mean, nanmean) and name not in JOINT and direction(task, name) is not None)
    ]
    filters = [ensemble.name for ensemble in task._filters]
    return {
        true_name(task, name) + (f",{which}" if number else ""): (name, which)
        for number, which in enumerate(filters)
        for name in single
    }


def direction(task: Any, name: str) -> bool | None:
    """Whether more of one of lm-eval's metrics is better; None where neither the task nor lm-eval says."""
    return False if name in LOGARITHMS or name in NEGATED else task.higher_is_better().get(name)


def true_name(task: Any, name: str) -> str:
    """Return the name of the number that is given for one of lm-eval's metrics."""
    if name in LOGARITHMS:
        return f"minus_log_{name}"
    return f"minus_{name}" if direction(task, name) is False else name


def own_metrics(task: Any, doc: Any, instances: Sequence[Any]) -> dict[str, float]:
    """Return lm-eval's metrics of a document, by our names, after its filters were applied to what the model said.

    Raises:
        ConfigError: a metric is no number.
    """
    names = metric_names(task)
    found = {
        which: task.process_results(doc, [instance.filtered_resps[which] for instance in instances])
        for which in {which for _, which in names.values()}
    }
    return {
        ours: _number(task, name, found[which][name]) for ours, (name, which) in names.items() if name in found[which]
    }


def evened(choices: Sequence[str], measure: str) -> np.ndarray:
    """Return what the log-likelihoods of choices are multiplied by, (C,): for a task that is measured by acc_norm (or
    acc_bytes), the mean of their lengths in characters (bytes) over the length of each; for others 1.
    """
    name = measure.split(",")[0]
    if name not in LENGTHS:
        return np.ones(len(choices))
    lengths = np.array([max(LENGTHS[name](choice), 1) for choice in choices], dtype=np.float64)
    return lengths.mean() / lengths


def among_choices(log_likelihoods: np.ndarray, gold: Sequence[int]) -> float:
    """Return the log-probability of the right choices (together) among all of them, (C,)."""
    with np.errstate(invalid="ignore"):  # none of them is possible: they have no ratio
        return float(np.logaddexp.reduce(log_likelihoods[list(gold)]) - np.logaddexp.reduce(log_likelihoods))


def _number(task: Any, name: str, value: Any) -> float:
    try:
        if name in COUNTED:
            total, count = value
            return float(total) / count / COUNTED[name]
        if name == "brier_score":
            gold, probabilities = value
            return -float(((np.asarray(probabilities) - np.eye(len(probabilities))[gold]) ** 2).sum())
        return float(value) if name in LOGARITHMS or direction(task, name) else -float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The metric {name} of {task.config.task} is no number of one document, but {value!r:.80}: leave it out of "
            f"the task's metric_list."
        ) from error


def by_document(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each metric of a list of documents, (n,); NaN where a document has none."""
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
