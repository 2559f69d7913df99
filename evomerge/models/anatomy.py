"""What a live model is made of, beside its values: modules, parameters, buffers, methods, hooks, settings.

In: a model as it was loaded. Out: how it differs from that later on, as kinds of change and the names that they touch;
and the same model put back, object for object, so that all who hold its tensors (merger, heads) see it again.

Two sorts of change are told apart. A finding changes what the model computes, or where it is kept. A setting is what
a function may need for its own work: an entry of the config, a number on a module, requires_grad. Settings are put back
without a word, and so is what the model's own forward pass changes: the positions of long texts, say.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from transformers import GenerationConfig, PreTrainedConfig

Finding = tuple[str, str]
"""A kind of change, and the name of what was changed."""
Hooks = dict[int, dict[Any, Any]]
"""Hooks that are there at one time, by the number of the place that holds them."""

REGISTERED = {"_parameters": "parameters", "_buffers": "buffers", "_modules": "modules"}
HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
)
CONFIGS = (PreTrainedConfig, GenerationConfig)


@dataclass(frozen=True)
class Kept:
    """A tensor as it was loaded.

    Attributes:
        name: in the model.
        tensor: the parameter or buffer itself.
        memory: its memory, wherever the tensor points later.
        form: address, dtype, device, shape and strides.
        nbytes: of the memory, with what else lies in it.
    """

    name: str
    tensor: Tensor
    memory: Tensor
    form: tuple[Any, ...]
    nbytes: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Kept:
        """Take note of a tensor."""
        return cls(name, tensor, tensor.detach(), _form(tensor), tensor.untyped_storage().nbytes())

    @property
    def gone(self) -> bool:
        """Whether the memory was freed or made smaller."""
        return self.memory.data_ptr() != self.form[0] or self.memory.untyped_storage().nbytes() < self.nbytes

    def findings(self, what: str) -> Iterator[Finding]:
        """Yield how the tensor differs in form, if it does."""
        if (now := _form(self.tensor)) == self.form:
            return
        for place, word in ((1, "in"), (2, "on"), (3, "of shape")):
            if now[place] != self.form[place]:
                old, new = (str(form[place]).removeprefix("torch.") for form in (self.form, now))
                yield f"{what} {word} {new} instead of {old}", self.name
                return
        yield f"{what} {'laid out in another way' if now[0] == self.form[0] else 'moved to other memory'}", self.name

    def put_back(self) -> None:
        """Let the tensor point to its own memory again."""
        if not self.tensor.is_leaf:
            self.tensor.detach_()
        if _form(self.tensor) != self.form:
            self.tensor.data = self.memory


class _Part:
    """A module as it was loaded.

    Attributes:
        name: in the model; empty for the model itself.
        module: itself.
        own: its attributes.
        registered: what its parameters, buffers and modules are.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module, self._kind = name, module, type(module)
        self.own = own = dict(vars(module))
        self.registered: dict[str, dict[str, Any]] = {group: dict(own[group]) for group in REGISTERED}
        self._groups = {key: own[key] for key in (*REGISTERED, *HOOKS, "training")}
        self._methods = {key: value for key, value in own.items() if callable(value)}
        self._plain = {key: value for key, value in own.items() if isinstance(value, (bool, int, float, str, *CONFIGS))}
        ropes = _rope_types(own)
        self.writes = "longrope" in ropes  # its own forward pass writes into its buffers
        self._replaces = (  # its own forward pass may replace its buffers: for other lengths, as those of M2M100 do
            self.writes or any("dynamic" in rope for rope in ropes) or hasattr(self._kind, "make_weights")
        )
        self._swaps = hasattr(self._kind, "set_attention_type")  # and BigBird its modules, where texts are short

    def findings(self) -> Iterator[Finding]:
        """Yield what would change its forward pass."""
        now, name = vars(self.module), self.name or "the model"
        if type(self.module) is not self._kind:
            yield "modules of another class", name
        if self.module.training != self.own["training"]:
            yield "modules left in training mode" if self.module.training else "modules left in eval mode", name
        for group, what in REGISTERED.items():
            if not (group == "_buffers" and self._replaces) and not (group == "_modules" and self._has_swapped(now)):
                yield from self._changed(what, self.registered[group], now.get(group, {}))
        yield from self._changed("methods", self._methods, {k: v for k in self._methods if (v := now.get(k))})
        yield from ((f"attributes that hide {what}", self._named(key)) for key, what in self._hiding(now))

    def put_settings_back(self) -> None:
        """Put back its numbers, flags and texts, and the buffers and modules that its own forward pass replaces."""
        now = vars(self.module)
        now |= self._plain
        for group, own in (("_buffers", self._replaces), ("_modules", self._swaps)):
            if own:
                now[group].update(self.registered[group])

    def put_back(self) -> None:
        """Make the same module again, with the same objects in it."""
        now = vars(self.module)
        if type(self.module) is not self._kind:
            self.module.__class__ = self._kind
        for key, _ in self._hiding(now):
            del now[key]
        now |= self._groups | self._methods
        for group, before in self.registered.items():
            now[group].clear()
            now[group].update(before)
        self.put_settings_back()

    def _has_swapped(self, now: Mapping[str, Any]) -> bool:
        """Whether all its modules are there, some of them as another kind of the same parameters."""
        before, after = self.registered["_modules"], now["_modules"]
        return (
            self._swaps
            and before.keys() == after.keys()
            and all(_weights(before[key]) == _weights(after[key]) for key in before)
        )

    def _changed(self, what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Finding]:
        if list(now) == list(before) and all(now[key] is value for key, value in before.items()):
            return
        yield from ((f"{what} removed", self._named(key)) for key in before if key not in now)
        yield from ((f"{what} added", self._named(key)) for key in now if key not in before)
        yield from (
            (f"{what} replaced", self._named(key)) for key in before if key in now and now[key] is not before[key]
        )

    def _hiding(self, now: Mapping[str, Any]) -> list[Finding]:
        """Return new attributes that Python finds before a method of the class, or before what is registered."""
        found = []
        for key in now.keys() - self.own.keys():
            if callable(getattr(self._kind, key, None)):
                found.append((key, "methods"))
            found += [(key, what) for group, what in REGISTERED.items() if key in self.registered[group]]
        return found

    def _named(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


class Anatomy:
    """A model as it was loaded.

    Args:
        model: the live model.

    Attributes:
        parameters: those of the model, tied ones once.
        buffers: those of the model.
        written: those of them into which the model's own forward pass writes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = [_Part(name, module) for name, module in model.named_modules()]
        self.parameters = [Kept.of(name, parameter) for name, parameter in model.named_parameters()]
        self.buffers = [Kept.of(name, buffer) for name, buffer in model.named_buffers()]
        written = {id(buffer) for part in self._parts if part.writes for buffer in part.own["_buffers"].values()}
        self.written = [kept for kept in self.buffers if id(kept.tensor) in written]
        self._whole = _Whole(self._parts)
        self._configs = _configs(value for part in self._parts for value in part.own.values())
        self._places: list[tuple[str, dict[Any, Any]]] = [
            *((part.name or "the model", part.own[key]) for part in self._parts for key in HOOKS),
            *(
                ("all modules", vars(everywhere)[f"_global{key}"])
                for key in HOOKS
                if f"_global{key}" in vars(everywhere)
            ),
        ]
        self._held = [hooks for _, hooks in self._places]

    def findings(self) -> list[Finding]:
        """Return how the model differs from what was loaded, hooks and settings aside."""
        found = [] if self._whole() else [finding for part in self._parts for finding in part.findings()]
        found += [finding for kept in self.parameters for finding in kept.findings("parameters")]
        return found + [finding for kept in self.buffers for finding in kept.findings("buffers")]

    def hooks(self) -> Hooks:
        """Return the hooks that are there now."""
        if not any(self._held):
            return {}
        return {number: dict(hooks) for number, hooks in enumerate(self._held) if hooks}

    def hook_findings(self, before: Hooks) -> list[Finding]:
        """Return where there are other hooks than before."""
        if (now := self.hooks()) == before:
            return []
        changed = [name for number, (name, _) in enumerate(self._places) if now.get(number) != before.get(number)]
        return [("hooks left behind or taken away", name) for name in dict.fromkeys(changed)]

    def put_back(self, hooks: Hooks) -> None:
        """Make the same model of the same objects again, with these hooks; values are left alone."""
        for part in self._parts:
            part.put_back()
        for kept in (*self.parameters, *self.buffers):
            kept.put_back()
        for number, (_, place) in enumerate(self._places):
            place.clear()
            place.update(hooks.get(number, {}))

    def put_settings_back(self) -> None:
        """Put back what a function may change for its own work."""
        if not self._whole():
            for part in self._parts:
                part.put_settings_back()
        for config, before in self._configs:
            if vars(config) != before:
                vars(config).clear()
                vars(config).update(_copied(before))


class _Whole:
    """Tells quickly whether all modules are as they were: hardly more than a comparison of what is the same object."""

    def __init__(self, parts: list[_Part]) -> None:
        self._modules = [part.module for part in parts]
        self._own = [part.own for part in parts]
        self._registered: list[dict[str, Any]] = [part.own[group] for part in parts for group in REGISTERED]
        self._before = self._seen()

    def __call__(self) -> bool:
        try:
            same = all(map(operator.eq, map(vars, self._modules), self._own))
        except (RuntimeError, ValueError):  # some attribute is another tensor or array: they have no single answer
            return False
        return same and self._seen() == self._before

    def _seen(self) -> tuple[list[Any], ...]:
        held = [*map(id, chain.from_iterable(map(dict.values, self._registered)))]
        return (
            held,
            [*chain.from_iterable(self._registered)],
            [*map(len, self._registered)],
            [*map(type, self._modules)],
        )


def _rope_types(own: Mapping[str, Any]) -> list[str]:
    """Return what kinds of rotary positions a module makes: one, or one for each kind of layer."""
    given = own.get("rope_type")
    return [str(rope) for rope in (given.values() if isinstance(given, Mapping) else [given])]


def _weights(module: nn.Module | None) -> set[int]:
    return {id(parameter) for parameter in module.parameters()} if module is not None else set()


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _configs(values: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return all configs among some values, and within these, each with its entries."""
    found: dict[int, tuple[Any, dict[str, Any]]] = {}
    left = [value for value in values if isinstance(value, CONFIGS)]
    while left:
        config = left.pop()
        if id(config) not in found:
            found[id(config)] = config, _copied(vars(config))
            left += [value for value in vars(config).values() if isinstance(value, CONFIGS)]
    return list(found.values())


def _copied(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the entries of a config; configs within it stay the same objects."""
    return {key: value if isinstance(value, CONFIGS) else copy.deepcopy(value) for key, value in entries.items()}
