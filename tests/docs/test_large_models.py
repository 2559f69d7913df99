"""The page on large models: its table is what our estimate says of a model of 7 B, and its searches are settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from evomerge.inspection.workers import Node, what_fits
from evomerge.models.pretrained import empty_model
from evomerge.runs.config import check, plain
from evomerge.task_vectors.packing import packed_bytes
from tests.kit.helpers import compose

PAGE = (Path(__file__).parents[2] / "docs" / "large-models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.splitlines()]
SEARCHES = [line[line.index(" search ") :] for line in LINES if " search " in line]
STORES = {"auto": "bfloat16", "int8": "int8", "int4": "int4"}  # experts as they are take as much as bfloat16
EXPERTS = 4


def rows() -> list[str]:
    """The rows of the table."""
    model = empty_model("AutoModelForCausalLM", LlamaConfig(), torch.bfloat16)  # by its defaults, the first Llama 7 B
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    base = {name: 2 * size for name, size in sizes.items()}
    made = []
    for store, kept in STORES.items():
        vectors = {name: EXPERTS * packed_bytes(size, kept) for name, size in sizes.items()}
        found = [what_fits(model, base, vectors, Node(8, memory, 1024)) for memory in (80, 40, 24)]
        for fits in zip(*found, strict=True):
            told = (f"{fit.place}: {re.search(r'[0-9.]+ GiB', fit.said)[0]}" for fit in fits)  # pyright: ignore[reportOptionalSubscript]
            made.append(f"| `{store}` | {fits[0].gpus} | {fits[0].workers} | {' | '.join(told)} |")
    return made


def test_the_table_is_our_own_estimate() -> None:
    assert [line for line in PAGE.splitlines() if re.match(r"\| `(auto|int8|int4)` \|", line)] == rows()


@pytest.mark.parametrize("line", SEARCHES)
def test_its_searches_are_settings(line: str) -> None:
    _, *given = shlex.split(line)
    settings = plain(compose(*(one for one in given if one != "-m" and not one.startswith(("seed=", "hydra")))))
    check(settings)
    assert settings["evaluator"]["kind"] == "processes" or "slots" in line or "ray" in line
