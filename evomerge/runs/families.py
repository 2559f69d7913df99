"""Base and experts, opened: from settings, or from what a program has in memory.

In: base and experts as directories, names on the hub, modules of torch or state dicts. Out: an `Opened` family, whose
base is loaded and whose experts are open by its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.common.progress import Progress
from evomerge.models.buffers import BASE
from evomerge.models.checkpoint import MEMORY, Checkpoint
from evomerge.models.computing import computed_in
from evomerge.models.devices import Devices
from evomerge.models.hub import find_directory
from evomerge.models.live import LiveModel, live_module, load_live
from evomerge.models.templates import adopt
from evomerge.models.vocabulary import CHOICES, REFUSE, UNION
from evomerge.models.weights import dtype_name
from evomerge.problem import Sources
from evomerge.runs.sources import as_numbers
from evomerge.task_vectors.family import check_files, family_notes

Model = str | Path | nn.Module | Mapping[str, Tensor]
"""A model as a program names it: a directory, `owner/name` on the hub, a module, or a state dict."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A base and its experts, open by the parameters of the live model.

    Attributes:
        sources: where they come from; of models in memory, what messages call them.
        settings: the settings `model`.
        live: the loaded base.
        base: θ₀.
        experts: θ_k by name.
    """

    sources: Sources
    settings: dict[str, Any]
    live: LiveModel
    base: Checkpoint
    experts: dict[str, Checkpoint]

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what is merged, in the order of the live model."""
        return {name: shape for name, shape in self.live.parameters.items() if name not in self.base.missing}

    def notes(self, allowed: Sequence[str] = (), pooled: bool = True) -> list[str]:
        """Return what should be known of the family, and refuse one that does not fit together; see `family_notes`."""
        return family_notes(
            self.sources.experts,
            self.live,
            self.base,
            self.experts,
            self.parameters,
            allowed,
            pooled,
            buffers=self.settings.get("buffers", BASE),
            template=self.settings.get("template", BASE),
        )

    @property
    def in_memory(self) -> bool:
        """Whether some of them lie in no directory."""
        return not all(path.is_dir() for path in (self.sources.base, *self.sources.experts.values()))


def open_family(
    sources: Sources,
    settings: Mapping[str, Any],
    processor: bool,
    reporter: Progress,
    check: Callable[[LiveModel], None] = lambda live: None,
) -> Opened:
    """Load the base and open the files of all, seen through the live model's parameters.

    Args:
        sources: where they are.
        settings: the settings `model`.
        processor: whether the base's tokenizer or image processor must be there.
        reporter: tells the user what goes on.
        check: refuses a base that cannot serve, before gigabytes of experts are read.
    """
    devices = Devices(settings["device"], settings.get("device_map"))  # runs of earlier versions say none of these
    devices.check()
    check_files(sources.base, sources.experts.values())
    with reporter.working("loading the base"):
        live = load_live(sources.base, settings["auto_class"], devices.first, processor)
    check(live)
    live = computed_in(live, settings.get("compute"), devices.kind).with_part(settings.get("part"))
    choice = settings.get("vocabulary", REFUSE)
    if choice == UNION:
        live = live.united(sources.base, sources.experts.values())
    if (template := settings.get("template", BASE)) != BASE:
        if template not in sources.experts:
            raise ConfigError(f"model.template: {unknown('expert', template, [BASE, *sources.experts])}")
        adopt(live, template, sources.experts[template])
    devices.spread(live.model)
    base, experts = open_sources(sources, live, Path(settings["cache"]), reporter, choice)
    return Opened(sources, _settled(settings, live), live, base, experts)


def open_sources(
    sources: Sources, live: LiveModel, cache: Path, reporter: Progress, vocabulary: str = REFUSE
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Open the files of base and experts, seen through the live model's parameters.

    Args:
        sources: where they are.
        live: the base as it is loaded, or its skeleton.
        cache: directory that remembers content hashes.
        reporter: shows progress.
        vocabulary: what becomes of experts with another number of tokens (`model.vocabulary`).
    """
    common: dict[str, Any] = {"cache": cache, "progress": reporter.steps}
    base = live.open(sources.base, **common)
    common |= {"vocabulary": vocabulary, "base": base}
    return base, {name: live.open(path, **common) for name, path in sources.experts.items()}


def take_family(
    base: Model, experts: Mapping[str, Model], settings: Mapping[str, Any], processor: Any, reporter: Progress
) -> Opened:
    """Open a family, any part of which may be in memory.

    Args:
        base: a directory, a name on the hub, or a module.
        experts: the same by name, or state dicts.
        settings: the settings `model`; `base` and `experts` are filled in here.
        processor: the tokenizer or image processor of a base in memory.
        reporter: tells the user what goes on.

    Raises:
        ConfigError: there are no experts, or the base is a state dict.
        CheckpointError: something cannot be read, or does not fit.
    """
    _check_models(base, experts, settings, processor)
    places = {name: find_directory(str(one)) for name, one in {"": base, **experts}.items() if _is_place(one)}
    paths = {name: places[name].path if name in places else MEMORY / (name or "base") for name in ("", *experts)}
    hub = {name: place.hub for name, place in places.items() if place.hub}
    home, codes = paths.pop(""), as_numbers(paths, hub, settings)
    sources = Sources(home, paths, {}, {}, hub, codes)
    settings = {**settings, "base": str(base) if _is_place(base) else str(sources.base)}
    settings["experts"] = {name: str(one) if _is_place(one) else str(paths[name]) for name, one in experts.items()}
    if len(places) == len(experts) + 1:
        return open_family(sources, settings, False, reporter)
    devices = Devices(settings["device"], settings["device_map"])
    devices.check()
    _check_in_memory(base, settings)
    check_files(sources.base if "" in places else None, [paths[name] for name in paths if name in places])
    opening: dict[str, Any] = {"cache": Path(settings["cache"]), "progress": reporter.steps}
    if isinstance(base, nn.Module):
        live = live_module(base, processor, None if settings["device"] == "auto" else settings["device"])
        settings["auto_class"] = live.auto_class
        ours = live.take(_state(base), "base", config=_config(base))
    else:
        live = load_live(sources.base, settings["auto_class"], devices.first, False)
        ours = live.open(sources.base, **opening)
    live = computed_in(live, settings["compute"], devices.kind).with_part(settings["part"])
    devices.spread(live.model)
    fit: dict[str, Any] = {"vocabulary": settings["vocabulary"], "base": ours}
    found = {
        name: live.open(paths[name], **opening, **fit)
        if _is_place(one)
        else live.take(_state(one), name, config=_config(one), **fit)
        for name, one in experts.items()
    }
    return Opened(sources, _settled(settings, live), live, ours, found)


def _check_models(base: Model, experts: Mapping[str, Model], settings: Mapping[str, Any], processor: Any) -> None:
    """Refuse what is no base or no expert."""
    if not experts:
        raise ConfigError("A family needs experts: Family(base, mood=..., topic=...) or Family(base, {name: ...}).")
    if isinstance(base, Mapping):
        raise ConfigError("The base is a state dict, which nobody can run: give the module with these weights in it.")
    for name, one in {"base": base, **experts}.items():
        if not isinstance(one, str | Path | nn.Module | Mapping):
            raise ConfigError(
                f"{name} is {one!r:.100}, which is no model: give a directory, a name on the hub, a module"
                f"{' or a state dict' if name in experts else ''}."
            )
    if settings["vocabulary"] not in CHOICES:
        raise ConfigError(f"vocabulary: {unknown('choice', settings['vocabulary'], CHOICES)}")
    if processor is not None and not isinstance(base, nn.Module):
        raise ConfigError(
            f"tokenizer= is for a base that is a module: {base} brings its own. Leave it out, or put the files of this "
            f"one into that directory (tokenizer.save_pretrained)."
        )


def _check_in_memory(base: Model, settings: Mapping[str, Any]) -> None:
    """Refuse settings that need the directories of all models, where some of them are in memory."""
    if settings["vocabulary"] == UNION:
        raise ConfigError(
            "vocabulary='union' compares tokenizers, and models in memory have none beside them: save them with their "
            "tokenizers, and name the directories."
        )
    if settings["template"] != BASE:
        raise ConfigError(
            f"template='{settings['template']}' takes the tokenizer of an expert's directory for the base's, and "
            f"some of these models are in memory: save them with their tokenizers, and name the directories."
        )
    if isinstance(base, nn.Module) and settings["device_map"] is not None:
        raise ConfigError(
            "device_map= spreads a base that evomerge loads, and a module stays where it is: spread it before "
            "(accelerate.dispatch_model), and leave device_map out."
        )


def _settled(settings: Mapping[str, Any], live: LiveModel) -> dict[str, Any]:
    """Return the settings `model` with the dtype that was chosen to compute in."""
    return {**settings, "compute": dtype_name(live.compute or live.dtype)}


def _is_place(model: Any) -> bool:
    return isinstance(model, str | Path)


def _state(model: Any) -> dict[str, Tensor]:
    """Return copies of the tensors of a module, or of a state dict, on the CPU, where those of files are.

    Whoever goes on training what was given changes nothing here.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    if stranger := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ConfigError(f"A state dict holds tensors by name, and {stranger[0]} is none: give model.state_dict().")
    return {key: tensor.detach().to("cpu", copy=True) for key, tensor in state.items()}


def _config(model: Any) -> dict[str, Any]:
    return model.config.to_dict() if isinstance(model, PreTrainedModel) else {}
