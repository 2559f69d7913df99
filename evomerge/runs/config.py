"""The settings of a search: what is checked of them, and the one place where `_target_` becomes an object.

In: YAML of conf/ and overrides of the command line, composed by Hydra. Out: a typed `SearchConfig`, and objects by
`build`. Hydra checks names and types against the schema; what depends on several settings, or on the models, is
checked where it is used.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hydra.utils
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.common.arguments import check_arguments, check_kind, is_kind
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.exits import Exited, contained
from evomerge.common.limits import AUTO
from evomerge.common.names import DTYPES, listed, unknown
from evomerge.common.paths import at_home
from evomerge.common.protocols import lacking
from evomerge.models.buffers import CHOICES as BUFFERS
from evomerge.models.vocabulary import CHOICES
from evomerge.runs.evaluator import check_evaluator
from evomerge.runs.objectives import check_objective
from evomerge.runs.paths import with_paths
from evomerge.runs.racing import check_racing
from evomerge.runs.roles import check_roles
from evomerge.runs.sampled import check_sampling
from evomerge.runs.schema import SearchConfig
from evomerge.runs.targets import CONF as CONF
from evomerge.runs.targets import choices_of, find_class
from evomerge.runs.transforms import in_order, make_chain
from evomerge.task_vectors.places import PLACES
from evomerge.task_vectors.stores import CHOICES as STORES

CHOOSING = {
    "metric": ("str",),
    "report_metric": ("str",),
    "tasks": (),
    "items": ("int", "None"),
    "rotate": ("bool",),
    "sampling": ("str", "None"),
    "grow": ("float", "None"),
    "approximate": ("str", "None"),
    "estimate": ("str", "None"),
    "estimate_from": (),
    "remember": ("bool", "None"),
    "select_items": ("int", "None"),
    "report_items": ("int", "None"),
    "held_out": (),
    "worth": ("bool", "None"),
}
"""Settings of a fitness that are not arguments of its class: they choose items and numbers, and change no per-item
result.
"""
OF_MODEL = {
    "vocabulary": CHOICES,
    "buffers": BUFFERS,
    "compute": (AUTO, *DTYPES),
    "place": (AUTO, *PLACES),
    "store": STORES,
}
"""The choices of settings `model`."""
LEARNING = {"inputs": ("int",)}
"""Settings of a loss that are not arguments of its class."""
OUTSIDE: dict[str, Mapping[str, Sequence[str]]] = {"fitness": CHOOSING, "loss": LEARNING}
UNNAMED = (
    *("budget", "budget_items", "budget_hours", "time_limit"),
    *("model.device", "model.device_map", "model.cache", "model.allow_missing", "model.trained_on"),
    *("evaluator.kind", "evaluator.workers", "evaluator.gpus", "evaluator.address"),
    *("tracker", "baselines", "fitness.report_metric", "fitness.select_items", "fitness.report_items"),
    *("fitness.directory", "fitness.remember", "fitness.worth"),
)
"""Settings that do not make another search, so that they stay out of a run's name."""


def register() -> None:
    """Make the schema and the `run_name` resolver known to Hydra; called by the command, not at import."""
    ConfigStore.instance().store(name="schema", node=SearchConfig)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def plain(config: Any) -> dict[str, Any]:
    """Return a composed configuration as plain containers, with home directories spelled out.

    Raises:
        ConfigError: a setting that must be given is missing.
    """
    try:
        settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{str(error).splitlines()[0]}: it must be given on the command line.") from error
    return with_paths(in_order(settings), at_home)


def check(settings: Mapping[str, Any]) -> None:
    """Check what the schema cannot, before models are loaded.

    Raises:
        ConfigError: a class cannot be found, or a setting has the wrong type or form.
    """
    for group in ("method", "searcher", "fitness", "loss"):
        if settings[group] is None:
            choices = ", ".join(choices_of(group))
            raise ConfigError(f"{group}=null leaves the search without one: write {group}= and one of {choices}.")
        _arguments(settings[group], group)
    experts = settings["model"]["experts"]
    named = [str(name) for name in experts] if isinstance(experts, list | dict) else []
    check_method(settings["method"], settings.get("transform") or [], named)
    for group, choosing in OUTSIDE.items():
        for name, kinds in choosing.items():
            check_kind(f"{group}.{name}", settings[group].get(name), kinds)  # earlier versions have not all
    if settings["loss"]["inputs"] < 1:
        raise ConfigError(f"loss.inputs={settings['loss']['inputs']}: a step needs at least one input of each task.")
    if settings["seed"] < 0:
        raise ConfigError(f"seed={settings['seed']} is negative; write any number from 0.")
    _check_model(settings["model"])
    limit = settings["time_limit"]
    if not (limit in (None, AUTO) or (is_kind(limit, "float") and 0 < limit < math.inf)):
        raise ConfigError(
            f"time_limit={limit} is no time: write the seconds that a candidate may take, such as time_limit=900, null "
            f"for no limit, or auto."
        )
    check_evaluator(settings.get("evaluator") or {})
    check_racing(settings)
    _check_space(settings["space"])
    _check_numbers("objective.weights", settings["objective"]["weights"], "{task: 2}")
    check_objective(settings)
    check_roles(settings)
    check_sampling(settings)
    if settings.get("tracker"):
        _arguments(settings["tracker"], "tracker")


def _check_model(model: Mapping[str, Any]) -> None:
    """Check the settings `model`, of which those of earlier versions have not all."""
    allowed = model.get("allow_missing")
    if allowed is not None and not _are_patterns(allowed):
        raise ConfigError(
            f"model.allow_missing is {allowed}; write a list of tensor names or patterns: "
            f"'model.allow_missing=[\"lm_head.*\"]'."
        )
    for name, choices in OF_MODEL.items():
        if (given := model.get(name, choices[0])) not in choices and (name, given) != ("compute", None):
            raise ConfigError(f"model.{name}: {unknown('choice', given, choices)}")
    if (taken := model.get("buffer_items", 1)) < 1:
        raise ConfigError(f"model.buffer_items={taken}: statistics need at least one item.")
    if (given := model.get("device_map")) is not None:
        from evomerge.models.devices import Devices  # which loads torch

        Devices(model["device"], given).check()


def _check_space(space: Mapping[str, Any]) -> None:
    """Check the settings `space`."""
    _check_numbers("space.frozen", space["frozen"], "{name pattern: 0.4}")
    for variable, pair in _mapping("space.bounds", space["bounds"], "{weight: [0, 1.5]}").items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(is_kind(value, "float") for value in pair):
            raise ConfigError(f"space.bounds.{variable} is {pair}; write 'space.bounds={{weight: [0, 1.5]}}'.")
    if not isinstance(space["tied"] or [], list):
        raise ConfigError(f"space.tied is {space['tied']}; write a list of name patterns: 'space.tied=[weight/*/r8]'.")
    for tie in space["tied"] or []:
        if not isinstance(tie, str):
            _check_numbers("space.tied", tie, "[{a: 1, b: -0.5}]")
    for name, example in (("only", "[weight/*.attention/*]"), ("masks", '["*.*"]')):
        if not _are_patterns(given := space.get(name) or []):
            raise ConfigError(
                f"space.{name} is {given}; write a list of patterns of what is searched: 'space.{name}={example}'."
            )


def _are_patterns(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(one, str) for one in given)


def check_method(
    settings: Mapping[str, Any], transforms: Sequence[Mapping[str, Any]], experts: Sequence[str] = ()
) -> None:
    """Refuse a class that is no method or has other settings, and transforms and experts that are not for this method.

    Args:
        settings: the settings `method`.
        transforms: the setting `transform`, resolved.
        experts: their names, if they are known.

    Raises:
        ConfigError: there is such a one.
    """
    from evomerge.merging.method import Method, check_rows
    from evomerge.recipes.catalog import check_chain

    kind = find_class(str(settings["_target_"]), "method")
    if not (isinstance(kind, type) and isinstance(kind, Method)):  # all that it promises stands on the class
        raise ConfigError(
            f"method._target_={settings['_target_']} is no method of merging: it lacks "
            f"{listed(lacking(kind, Method)) or 'a class'}. See {Method.__module__}.{Method.__qualname__}."
        )
    check_chain(kind, make_chain(transforms))
    build(settings, "method")
    if experts:
        check_rows(kind, experts)


def classes(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the class of a group, then those of the objects nested in it."""
    yield hydra.utils.get_object(settings["_target_"])
    for value in settings.values():
        if isinstance(value, dict) and "_target_" in value:
            yield from classes(value)


def build(settings: Mapping[str, Any], group: str, **runtime: Any) -> Any:
    """Make the object that `_target_` of a group names: the only place that does.

    Args:
        settings: the group's settings, as plain containers.
        group: `method`, `searcher`, `fitness` or `loss`.
        runtime: further arguments, which only the program can give.

    Raises:
        ConfigError: the class cannot be found, or a setting has the wrong type.
    """
    arguments = _arguments(settings, group)
    try:
        make = hydra.utils.instantiate({**arguments, "_partial_": True, "_convert_": "object"})
        return contained(lambda: make(**runtime))
    except (HydraException, TypeError, Exited) as error:
        if isinstance(error.__cause__, EvomergeError):  # a nested object says itself what is wrong with its settings
            raise error.__cause__ from None
        said = error if isinstance(error, Exited) else error.__cause__ or error
        raise ConfigError(
            f"{group} cannot be made from {arguments['_target_']}: {str(said).splitlines()[0]}"
        ) from error


def is_unnamed(setting: str) -> bool:
    """Whether a setting does not make another search, so that it stays out of the name of a run."""
    return setting in UNNAMED or setting.startswith(("tracker.", "model.trained_on."))


def run_name(choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """Return the name of a run: readable, and the same for the same search, so that the same command finds its log
    again.

    It is made of the chosen groups and of every override, but for those that do not make another search (`UNNAMED`).
    Sources and tasks, and values with slashes, spaces or other odd characters, go into a short hash.
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    groups = {
        name: given.pop(name, choices.get(name))
        for name in ("experiment", "model", "method", "transform", "space", "searcher", "fitness", "loss", "objective")
    }
    given.pop("evaluator", None)  # who scores, not what
    usual = {("fitness", "classification"), ("loss", "cross_entropy"), ("objective", "mean")}
    groups["transform"], written = _transform_name(groups["transform"])
    parts = [value for name, value in groups.items() if value not in (None, "null") and (name, value) not in usual]
    odd = [*written, *(override for override in overrides if "=" not in override)]  # ~setting takes one away
    for key, value in sorted(given.items()):
        if is_unnamed(key) or key.startswith(("hydra.", "hydra/")):
            continue
        if key.startswith(("model.", "fitness.tasks")) or not re.fullmatch(r"[\w.-]{1,20}", value):
            odd.append(f"{key}={value}")
        else:
            parts.append(f"s{value}" if key == "seed" else f"{key}-{value}")
    if odd:
        parts.append(hashlib.sha256("\n".join(sorted(odd)).encode()).hexdigest()[:8])
    return "-".join(parts)


def _transform_name(choice: Any) -> tuple[str | None, list[str]]:
    """Return what transforms add to the name of a run, and what goes into its hash."""
    names = re.sub(r"[\[\]' ]", "", str(choice)).replace(",", "-")
    if names in ("None", "null", "none", ""):
        return None, []
    return (f"transform-{names}", []) if re.fullmatch(r"[\w-]{1,40}", names) else (None, [f"transform={choice}"])


def _arguments(settings: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the arguments of a group's class, held against the plain annotations of its constructor."""
    arguments = {name: value for name, value in settings.items() if name not in OUTSIDE.get(group, ())}
    target = find_class(str(arguments.get("_target_")), group)
    check_arguments(target, arguments, group)
    for name, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            _arguments(value, f"{group}.{name}")
    return arguments


def _check_numbers(setting: str, value: Any, example: str) -> None:
    for name, number in _mapping(setting, value, example).items():
        if not is_kind(number, "float"):
            raise ConfigError(f"{setting} has {number} for {name}, which is no number: write '{setting}={example}'.")


def _mapping(setting: str, value: Any, example: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{setting} is {value}: write '{setting}={example}'.")
    return value or {}
