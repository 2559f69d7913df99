"""No fourth outcome: of a family with one thing changed at random, evomerge refuses or names it, or scores every model
as transformers loads it.

`constant:1` of one expert, that expert by name, and its directory as a model must give the logits of `from_pretrained`
of that directory, to 1e-5 in float32. EVOMERGE_MUTATIONS=3000 tries so many; the default takes some tens of seconds.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from transformers import BertModel, GPT2LMHeadModel, LlamaForCausalLM

from evomerge.assembly import assemble
from evomerge.config import plain
from evomerge.contenders import of_directory
from evomerge.errors import EvomergeError
from evomerge.progress import Reporter
from tests.helpers import compose
from tests.language import save_tokenizer, write_jsonl
from tests.models import BERT, GPT2, LLAMA, LLAMA_TIED, pico
from tests.mutations import Mutation, mutate

CASES = int(os.environ.get("EVOMERGE_MUTATIONS", "320"))
CHUNKS = 8
FAMILIES = {
    "llama": (LlamaForCausalLM, LLAMA, "AutoModelForCausalLM"),
    "tied": (LlamaForCausalLM, LLAMA_TIED, "AutoModelForCausalLM"),
    "gpt2": (GPT2LMHeadModel, GPT2, "AutoModelForCausalLM"),
    "bert": (BertModel, BERT, "AutoModel"),
}
INPUT = torch.tensor([[1, 5, 9, 30, 2, 7, 11, 4]])


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts of each architecture, and a fitness of one's own that is never called."""
    root = tmp_path_factory.mktemp("families")
    for family, (cls, config, _) in FAMILIES.items():
        for number, name in enumerate(("base", "one", "two")):
            model, generator = pico(cls, copy.deepcopy(config)), torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                parameter.data *= 0.3
                if number:
                    parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
            model.save_pretrained(root / family / name)
            save_tokenizer(root / family / name)
    (root / "fitness.py").write_text("def score(model, processor, items):\n    raise SystemExit\n")
    write_jsonl(root / "items.jsonl", [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(100)])
    return root


@pytest.fixture(scope="module")
def settings(families: Path) -> dict[str, Any]:
    fitness = ["fitness=custom", f"fitness.function={families}/fitness.py:score"]
    return plain(compose(*fitness, f"fitness.tasks={{t: {{items: {families}/items.jsonl}}}}", "model.device=cpu"))


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
        assembly = assemble({**settings, "model": model}, reporter)
        contender = of_directory(path / "one", assembly, {**settings, "model": model}, reporter)
    except EvomergeError as error:
        return "refused", str(error), {}
    live, found = assembly.live.model, {}
    found["base"] = logits(live)
    assembly.merger.apply({"weight": torch.tensor([[1.0, 0.0]]).expand(len(assembly.space.groups), 2).double().numpy()})
    found["constant"] = logits(live)
    assembly.become("one")
    found["expert"] = logits(live)
    assembly.become(None)
    contender.score(lambda ids: found.update(directory=logits(live)), {})
    theirs = {name: loaded(path / name, auto_class) for name in ("base", "one")}
    equal = {}
    for row, ours in found.items():
        other = theirs["base" if row == "base" else "one"]
        equal[row] = other is not None and torch.allclose(ours, other, rtol=1e-5, atol=1e-5)
    return "scored", "\n".join([*assembly.warnings, said.getvalue()]), equal


def verdict(mutation: Mutation, done: str, said: str, equal: Mapping[str, bool]) -> str | None:
    """What is wrong with an outcome, or None."""
    noted = "\n".join(line for line in said.splitlines() if "tasks or" not in line)
    if mutation.kind == "control":
        if done == "refused":
            return f"refused: {said}"
        warned = [line for line in noted.splitlines() if line.startswith(("expert ", "base ", "the base", "warning"))]
        return f"warned: {warned}" if warned else None if all(equal.values()) else f"other logits: {equal}"
    if any(word in noted for word in mutation.words):
        return None
    if done == "refused":
        return f"refused without naming it: {said}"
    return None if all(equal.values()) else f"other logits without a word: {equal}; said: {noted}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_fourth_outcome(families: Path, settings: dict[str, Any], tmp_path: Path, chunk: int) -> None:
    wrong = []
    for seed in range(chunk, CASES, CHUNKS):
        rng = random.Random(seed)
        family = rng.choice(sorted(FAMILIES))
        who = rng.choice(["one", "one", "one", "base"])
        place = tmp_path / str(seed)
        shutil.copytree(families / family, place)
        mutation = mutate(place / who, rng, control=seed % 5 < 2)
        problem = verdict(mutation, *outcome(settings, place, FAMILIES[family][2]))
        if problem:
            wrong.append(f"seed {seed}, {family}, {who}: {mutation.kind} {mutation.words}: {problem}")
        shutil.rmtree(place)
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong])
