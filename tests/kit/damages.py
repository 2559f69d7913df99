"""What a careless function may do to the live model, what wrong things it may return, and what evomerge says of it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import l1_unstructured

from evomerge.fitness.base import Outcome

Harm = Callable[[Any], object]


def weight(model: Any) -> nn.Parameter:
    """A parameter that every expert has changed."""
    names = ("output.dense.weight", "down_proj.weight")
    return next(parameter for name, parameter in model.named_parameters() if name.endswith(names))


def layer(model: Any) -> Any:
    """A module that every forward pass runs."""
    return next(module for name, module in model.named_modules() if re.search(r"layers?\.0$", name))


def leaf(model: Any) -> Any:
    """A linear module within it."""
    return next(module for module in layer(model).modules() if isinstance(module, nn.Linear))


def norm(model: Any) -> Any:
    """A module with a number that its forward pass uses."""
    return next(module for module in model.modules() if hasattr(module, "eps") or hasattr(module, "variance_epsilon"))


def replace(model: Any) -> None:
    owner, name = next((m, n) for m in model.modules() for n, child in m.named_children() if child is leaf(model))
    setattr(owner, name, nn.Linear(leaf(model).in_features, leaf(model).out_features))


@torch.inference_mode()
def in_inference_mode(model: Any) -> None:
    weight(model).add_(1)


def numpy_view(model: Any) -> None:
    array = weight(model).detach().numpy()
    array *= 2


def around_the_counters(model: Any) -> None:
    weight(model).data.mul_(2)


def patch(model: Any) -> None:
    layer(model).forward = lambda *arguments, **settings: arguments[0]


def point_elsewhere(model: Any) -> None:
    weight(model).data = weight(model).data.clone()


def remove(model: Any) -> None:
    del leaf(model).weight


def another(model: Any) -> None:
    leaf(model).weight = nn.Parameter(torch.zeros_like(leaf(model).weight))


def learn(model: Any) -> None:
    """Take a step, as of test-time training."""
    model.requires_grad_(True)
    with torch.enable_grad():
        sum(parameter.sum() for parameter in model.parameters()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def unmerged(model: Any) -> None:
    """Change what no expert has changed, and no candidate overwrites."""
    next(p for name, p in model.named_parameters() if "embed" in name).detach().zero_()


def pass_gradients(model: Any) -> None:
    """Leave gradients behind, and let a parameter be hooked."""
    model.requires_grad_(True)
    weight(model).register_hook(lambda gradient: gradient)
    with torch.enable_grad():
        weight(model).sum().backward()


def new_eps(model: Any) -> None:
    name = "eps" if hasattr(norm(model), "eps") else "variance_epsilon"
    setattr(norm(model), name, 0.5)


def new_precision(model: Any) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)


HARMS: dict[str, tuple[Harm, str]] = {
    "half": (lambda model: model.half(), "parameters in float16 instead of float32: "),
    "double": (lambda model: model.double(), "parameters in float64 instead of float32: "),
    "a layer": (lambda model: layer(model).to(torch.bfloat16), "parameters in bfloat16 instead of float32: "),
    "moved": (point_elsewhere, "parameters moved to other memory: "),
    "in place": (lambda model: weight(model).detach().mul_(2), "values changed: "),
    "in inference mode": (in_inference_mode, "values changed: "),
    "data": (around_the_counters, "values changed: "),
    "numpy": (numpy_view, "values changed: "),
    "buffer": (lambda model: next(b for b in model.buffers() if b.numel() > 1).add_(1), "values changed: "),
    "unmerged": (unmerged, "values changed: "),
    "learned": (learn, "values changed: "),
    "transposed": (lambda model: weight(model).t_(), "parameters (of shape|laid out in another way)"),
    "hook": (lambda model: layer(model).register_forward_hook(lambda *_: None), "hooks left behind or taken away: "),
    "hook of all": (lambda model: nn.modules.module.register_module_forward_hook(lambda *_: None), "away: all modules"),
    "forward": (patch, "attributes that hide methods: "),
    "replaced": (replace, "modules replaced: "),
    "removed": (remove, "parameters removed: "),
    "another": (another, "parameters replaced: "),
    "added": (lambda model: layer(model).add_module("more", nn.Linear(1, 1)), "modules added: "),
    "pruned": (lambda model: l1_unstructured(leaf(model), "weight", amount=0.5), "parameters removed: "),
    "parametrised": (lambda model: weight_norm(leaf(model)), "modules of another class: "),
}
"""Each with the finding that names it."""

HARMLESS: dict[str, Harm] = {
    "requires_grad": lambda model: model.requires_grad_(True),
    "gradients": pass_gradients,
    "config": lambda model: setattr(model.config, "hidden_act", "relu"),
    "eps": new_eps,
    "precision": new_precision,
}
"""What is put back without a word."""


def fail(model: Any) -> None:
    model.half()
    raise ValueError("too bad")


def leave(model: Any) -> None:
    weight(model).data.mul_(2)
    raise SystemExit(0)


def hang(model: Any) -> None:
    model.double()
    while True:
        try:  # noqa: SIM105
            time.sleep(10**6)
        except Exception:
            pass


ENDS: dict[str, tuple[Harm, str]] = {
    "raises": (fail, "ValueError: too bad"),
    "exits": (leave, "Exited: SystemExit was raised with status 0"),
    "hangs": (hang, "TimeoutError: took longer than time_limit=2 s"),
}
"""Changes the model and does not return."""

WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "too few": (lambda values: values[:-1], r"an array of shape \(1,\)"),
    "too many": (lambda values: [*values, 0.5], r"an array of shape \(3,\)"),
    "a mean": (lambda values: float(np.mean(values)), r"an array of shape \(\)"),
    "NaN": (lambda values: [math.nan, *values[1:]], "of 1 of 2 items of .* is not a finite number"),
    "strings": (lambda values: ["good" for _ in values], "no numbers"),
    "nothing": (lambda values: None, r"no numbers|an array of shape \(\)"),
}
"""What is returned for a task instead of a number for each item."""


def wronged(kind: str, returned: Any) -> Any:
    """What a function returns instead of these numbers by task, or of this outcome."""
    if kind == "None":
        return None
    if kind == "other names":
        if isinstance(returned, Outcome):
            return Outcome(returned.items, {f"{task}s": values for task, values in returned.results.items()})
        return {f"{task}s": values for task, values in returned.items()}
    change = WRONG[kind][0]
    if isinstance(returned, Outcome):
        results: Mapping[str, Any] = {
            task: {name: change(list(values)) for name, values in metrics.items()}
            for task, metrics in returned.results.items()
        }
        return Outcome(returned.items, results)
    return {task: change(values) for task, values in returned.items()}


class Course:
    """Does harm to every second candidate, each time of another kind, after it has been scored."""

    def __init__(self) -> None:
        self.kinds = [*HARMS, "train", *HARMLESS, *ENDS, *WRONG, "None", "other names"]
        self.harmful, self.running, self.number = False, False, -1

    @property
    def length(self) -> int:
        """The number of candidates."""
        return 2 * len(self.kinds)

    def __call__(self, model: Any, score: Callable[[], Any]) -> Any:
        """What comes of scoring the candidate."""
        returned = score()
        if not (self.harmful and self.running) or self.number % 2 == 0:
            return returned
        kind = self.kinds[self.number // 2]
        if kind in WRONG or kind in ("None", "other names"):
            return wronged(kind, returned)
        harms = {**{name: harm for name, (harm, _) in (HARMS | ENDS).items()}, **HARMLESS}
        harms.get(kind, lambda model: model.train())(model)
        return returned


course = Course()


def score(model: Any, tokenizer: Any, items: Mapping[str, Any]) -> Any:
    """A user's own fitness, which goes that course."""

    def one(text: str) -> float:
        hidden = model(**tokenizer(text, return_tensors="pt").to(model.device)).last_hidden_state
        return float(hidden.detach().mean(1)[0, :8].abs().mean())

    return course(model, lambda: {task: [one(item.text) for item in chosen] for task, chosen in items.items()})
