"""The yardstick for checkpoints: what transformers makes of a directory, and what evomerge makes of the same.

In: families of a base and two experts, in directories. Out: for `constant:1` of one expert, for that expert by name and
for its directory as a model, whether the logits are those of `from_pretrained`; and all that evomerge says.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import BertModel, GPT2LMHeadModel, LlamaForCausalLM

from evomerge.cli.progress import Reporter
from evomerge.common.errors import EvomergeError
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.selection.contenders import of_directory
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.kit.language import save_tokenizer, write_jsonl
from tests.kit.models import BERT, GPT2, LLAMA, LLAMA_TIED, pico

FAMILIES = {
    "llama": (LlamaForCausalLM, LLAMA, "AutoModelForCausalLM"),
    "tied": (LlamaForCausalLM, LLAMA_TIED, "AutoModelForCausalLM"),
    "gpt2": (GPT2LMHeadModel, GPT2, "AutoModelForCausalLM"),
    "bert": (BertModel, BERT, "AutoModel"),
}
INPUT = torch.tensor([[1, 5, 9, 30, 2, 7, 11, 4]])


def save_families(root: Path) -> None:
    """A base and two experts of each architecture, and a fitness of one's own that is never called."""
    for family, (cls, config, _) in FAMILIES.items():
        save_family(root / family, cls, config)
    (root / "fitness.py").write_text("def score(model, processor, items):\n    raise SystemExit\n")
    write_jsonl(root / "items.jsonl", [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(100)])


def save_family(path: Path, cls: Any, config: Any) -> None:
    """A base and two experts, `one` and `two`, each with a tokenizer."""
    for number, name in enumerate(("base", "one", "two")):
        model, generator = pico(cls, copy.deepcopy(config)), torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.data *= 0.3
            if number:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(path / name)
        save_tokenizer(path / name)


def settings_of(root: Path) -> dict[str, Any]:
    """Settings of a search with the fitness and the items that lie beside the families."""
    fitness = ["fitness=custom", f"fitness.function={root}/fitness.py:score"]
    return plain(compose(*fitness, f"fitness.tasks={{t: {{items: {root}/items.jsonl}}}}", "model.device=cpu"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=INPUT)[0].float()


def loaded(path: Path, auto_class: str) -> torch.Tensor | None:
    """What transformers makes of a directory; None where it cannot load it."""
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    try:
        with torch.random.fork_rng():
            return logits(getattr(transformers, auto_class).from_pretrained(path).eval())
    except Exception:
        return None
    finally:
        logging.getLogger("transformers").setLevel(level)


def outcome(settings: Mapping[str, Any], path: Path, auto_class: str) -> tuple[str, str, dict[str, bool]]:
    """What evomerge does with a family: `refused` or `scored`, all that it says, and by model and row whether the
    logits are those of transformers.
    """
    said = io.StringIO()
    reporter = Reporter(Console(file=said, width=10_000, soft_wrap=True))
    model = settings["model"] | {"base": str(path / "base"), "auto_class": auto_class, "cache": str(path / "cache")}
    model["experts"] = {"one": str(path / "one"), "two": str(path / "two")}
    try:
        problem = build_problem({**settings, "model": model}, reporter)
        contender = of_directory(path / "one", under(problem, {**settings, "model": model}), reporter)
    except EvomergeError as error:
        return "refused", str(error), {}
    live, found = problem.live.model, {}
    found["base"] = logits(live)
    problem.merger.apply({"weight": torch.tensor([[1.0, 0.0]]).expand(len(problem.space.groups), 2).double().numpy()})
    found["constant"] = logits(live)
    problem.become("one")
    found["expert"] = logits(live)
    problem.become(None)
    contender.score(lambda ids: found.update(directory=logits(live)), {})
    theirs = {name: loaded(path / name, auto_class) for name in ("base", "one")}
    equal = {}
    for row, ours in found.items():
        other = theirs["base" if row == "base" else "one"]
        equal[row] = (
            other is not None and other.shape == ours.shape and torch.allclose(ours, other, rtol=1e-5, atol=1e-5)
        )
    return "scored", "\n".join([*problem.warnings, said.getvalue()]), equal
