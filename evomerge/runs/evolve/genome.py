"""The genome of a configuration of mergekit-evolve: models, method, and which coefficients there are.

In: the node `genome`. Out: settings `model`, `method` and `space` in the account. mergekit-evolve gives embeddings and
head the numbers of the outer layers; here they are groups of their own.
"""

from __future__ import annotations

from typing import Any

from evomerge.models.hub import find_directory, name_directories
from evomerge.models.vocabulary import read_object
from evomerge.recipes.mergekit.document import Reference, read_reference
from evomerge.recipes.mergekit.evaluate import flag, number
from evomerge.recipes.mergekit.nodes import Node
from evomerge.runs.evolve.account import Account
from evomerge.runs.guess import words_for

GENOME = (
    *("models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize"),
    *("allow_negative_weights", "filters", "smooth"),
)
METHODS = {"linear": "average", "task_arithmetic": "linear", "ties": "ties", "dare_ties": "dare_ties", "slerp": "slerp"}
"""Methods of a genome, and what they are here."""
HIGH = 1.5
"""The upper bound of weights, where mergekit-evolve has none."""
MODULES = {"self_attn": "attention", "attn": "attention", "attention": "attention", "mlp": "mlp"}
"""Filters that the space `modules` knows."""


def read_genome(genome: Node, account: Account) -> Reference:
    """Take a genome over; return the model that is the base.

    Raises:
        ConfigError: it asks for what evomerge cannot do; the message names the line.
    """
    base = _read_models(genome, account)
    _read_method(genome, account)
    _read_space(genome, base, account)
    return base


def _read_models(genome: Node, account: Account) -> Reference:
    """Take base and experts over; return the base."""
    listed = genome.get("models")
    if listed is None or not listed.list:
        raise genome.error("genome has no models")
    models = [read_reference(one) for one in listed.list]
    base_node = genome.get("base_model")
    base = read_reference(base_node) if base_node else None
    method = method_of(genome)
    for model in models:
        model.check_adapter(base or models[0].without())
    if method in ("ties", "dare_ties", "task_arithmetic") and base is None:
        raise genome.error(f"{method} needs a base_model")
    experts = models if method == "linear" else [model for model in models if model != (base or models[0])]
    if method == "slerp":
        base, experts = _circle(genome, models)
    names = name_directories([model.place for model in experts])
    words = words_for(list(names))
    start = base or models[0].without()
    account.take(
        "models, base_model",
        {"model.base": start.place, "model.experts": {words[name]: path for name, path in names.items()}},
        "" if base else "the first model stands for the base: its configuration and tokenizer are taken",
    )
    if source := genome.get("tokenizer_source"):
        _check_tokenizer(source, account)
    return start


def _circle(genome: Node, models: list[Reference]) -> tuple[Reference, list[Reference]]:
    """Return both ends of a SLERP."""
    if len(models) != 2:
        raise genome.items["models"].error(
            f"slerp goes between two models, and mergekit-evolve chooses two of {len(models)} for each layer. "
            f"evomerge merges the same models everywhere: name two, or write merge_method: linear"
        )
    return models[0], models[1:]


def _check_tokenizer(source: Node, account: Account) -> None:
    if source.text() not in ("base", "union"):
        raise source.error("the merged model has the base's tokenizer: write tokenizer_source: base")
    if source.text() == "union":
        account.take("tokenizer_source: union", {"model.vocabulary": "union"}, "every token of any model has a row")
        return
    why = "the merged model has the base's tokenizer and its rows; tokens that experts add are left out"
    account.take("tokenizer_source: base", {"model.vocabulary": "shared"}, why)


def method_of(genome: Node) -> str:
    """Return mergekit's name of the method.

    Raises:
        ConfigError: there is none of that name.
    """
    method = genome.get("merge_method")
    if method is None:
        raise genome.error("genome has no merge_method")
    if method.text() not in METHODS:
        raise method.error(f"mergekit-evolve has no merge_method {method.text()}: there is {', '.join(METHODS)}")
    return method.text()


def _read_method(genome: Node, account: Account) -> None:
    """Take the method over, and what it divides by."""
    method, given = method_of(genome), genome.get("normalize")
    normalize = flag(given) if given else method in ("ties", "dare_ties", "linear")
    ours = METHODS[method]
    settings: dict[str, Any] = {"method": ours}
    why = "masks are drawn once for all candidates, by the seed" if method == "dare_ties" else ""
    if method in ("ties", "dare_ties"):
        settings |= {"method.normalize": normalize}
        account.take(f"merge_method: {method}, normalize: {str(normalize).lower()}", settings, why)
    elif method == "task_arithmetic" and normalize:
        settings = {"method": "dare", "method.normalize": True, "space.frozen": {"density/*": 1.0}}
        account.take("merge_method: task_arithmetic, normalize: true", settings, "dare that drops nothing divides so")
    else:
        account.take(f"merge_method: {method}", settings, why)
        if method == "linear" and not normalize:
            account.tell("normalize: false", "an average divides by its weights; without, the whole model is scaled")
    account.tell("dtype: bfloat16 (always)", "task vectors are added up in float32, and the result is rounded once")


def _read_space(genome: Node, model: Reference, account: Account) -> None:
    """Take over which coefficients there are."""
    size, smooth, filters = genome.get("layer_granularity"), genome.get("smooth"), genome.get("filters")
    layers = int(number(size)) if size else 0
    parts, smooth_on = 1, bool(smooth and flag(smooth))
    if layers > 0:
        parts = _parts(size, layers, model) if size else 1
    theirs = f"layer_granularity: {layers or 'none'}" + ", smooth: true" * smooth_on
    why = (
        "embeddings and head have coefficients of their own, where mergekit-evolve gives them those of the outer layers"
    )
    if filters and filters.list:
        _read_filters(filters, parts, theirs, smooth_on, account)
    elif parts == 1:
        account.take(theirs, {"space": "model"})
    elif smooth_on and parts == 2:
        account.take(theirs, {"space": "line"}, "two numbers for each model, and a straight line between them")
    else:
        steps = f"; {parts} steps in place of a ramp through {parts} numbers" if smooth_on else ""
        account.take(theirs, {"space": "blocks", "space.n": parts}, why + steps)


def _read_filters(filters: Node, parts: int, theirs: str, smooth: bool, account: Account) -> None:
    names = [one.text() for one in filters.list]
    strange = [name for name in names if name not in MODULES]
    if strange:
        raise filters.error(
            f"the filter {strange[0]} picks tensors of its own, and evomerge splits layers into attention, mlp and "
            f"norms: write filters of these ({', '.join(MODULES)}), or leave filters out, which searches layers"
        )
    why = "attention, mlp and norms apart; embeddings and head as well" + (
        f"; {parts} steps in place of a ramp" if smooth and parts > 1 else ""
    )
    account.take(f"{theirs}, filters: {', '.join(names)}", {"space": "modules", "space.n": parts}, why)


def _parts(size: Node, layers: int, model: Reference) -> int:
    config = read_object(find_directory(model.place).path / "config.json")
    count = (config.get("text_config") or config).get("num_hidden_layers", config.get("n_layer"))
    if not isinstance(count, int) or count % layers:
        raise size.error(f"the model has {count} layers, and layer_granularity must divide them")
    return count // layers
