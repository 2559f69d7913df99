"""Fits the head of a task to a text base as it is: `python scripts/fit_head.py --base DIR --items DIR --out FILE`.

In: a base, and a directory of items with `train.jsonl`, whose labels are numbers from 0. Out: a linear probe of the
base as the frozen head of the task (`fitness.tasks.<task>.head`). The base is then good at the task, and a merge of
experts for other tasks may lose it: a task that must be kept, as `objective.constraints` holds it.

    python scripts/fit_head.py --base suites/demo/base --items suites/demo/tasks/tweets --out heads/tweets.safetensors

A search takes it as `fitness.tasks.tweets={items: suites/demo/tasks/tweets, head: heads/tweets.safetensors}`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from suite_builder.probes import fit_probe

from evomerge.demo.finetune import embed
from evomerge.fitness.items import read_items
from evomerge.models.live import load_live
from evomerge.runs.suite import write_head

BATCH = 64
MAX_TOKENS = 48
"""Of a text, as `fitness.max_length` has it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the head, write it, and say how good it is on the search items."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="directory of the base")
    parser.add_argument("--items", type=Path, required=True, help="directory of the task's items, with train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="the head, a safetensors file")
    parser.add_argument("--max-length", type=int, default=MAX_TOKENS, help="tokens of a text")
    options = parser.parse_args(argv)
    live = load_live(options.base, device="cpu")
    items = {split: read_items(options.items, split) for split in ("train", "search")}
    features, labels = {}, {split: np.array([item.label for item in each]) for split, each in items.items()}
    for split, each in items.items():
        texts = [item.text for item in each]
        with torch.no_grad():
            parts = [
                embed(live.model, live.processor, texts[i : i + BATCH], options.max_length)
                for i in range(0, len(texts), BATCH)
            ]
        features[split] = torch.cat(parts).double().numpy()
    weight, bias, scale = fit_probe(features["train"], labels["train"], int(labels["train"].max()) + 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_head(options.out, torch.from_numpy(weight), torch.from_numpy(bias), scale=scale)
    right = (scale * features["search"] @ weight.T + bias).argmax(axis=1) == labels["search"]
    print(f"{options.out}: fitted to {len(labels['train'])} items, right on {right.mean():.1%} of {len(right)} others")


if __name__ == "__main__":
    main()
