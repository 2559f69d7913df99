"""Merge two text classifiers of one's own that were tuned from one base, each with a head of its own.

    python examples/classifiers.py BASE MOOD TOPIC mood.jsonl topic.jsonl

Without any of these, tiny models are made first. Lines of the files are {"text": "what a day", "label": 1}.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import evomerge as em
from evomerge.demo.pico import build_pico
from evomerge.runs.suite import Suite


def tiny(folder: Path, suite: Suite) -> tuple[Path, ...]:
    """Make a base, two classifiers and their items, of the models of a pico suite."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    shutil.copytree(suite.base, folder / "base")
    tokenizer, names = AutoTokenizer.from_pretrained(suite.base), ("animals", "trees")
    for name in names:
        items = em.items(suite.tasks[name].items)["search"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BertForSequenceClassification.from_pretrained(suite.experts[name], num_labels=4)
        optimizer = torch.optim.Adam(model.classifier.parameters(), lr=0.05)
        texts = tokenizer([item.text for item in items], return_tensors="pt", padding=True)
        for _ in range(40):
            loss = model(**texts, labels=torch.tensor([item.label for item in items])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "base", *(folder / name for name in names), *(suite.tasks[name].items for name in names)


def main(paths: Sequence[Path], out: Path) -> em.Result:
    base, one, other, items, other_items = paths
    family = em.Family(base, {one.name: one, other.name: other})
    print(family)
    candidate = em.Candidate(family, space="layer")
    tasks = {
        one.name: {"items": str(items), "expert": one.name},
        other.name: {"items": str(other_items), "expert": other.name},
    }
    result = em.search(candidate, "classification", tasks, searcher=em.cmaes(sigma=0.2), budget=30)
    print(result)
    result.save(out)
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        paths = tuple(map(Path, sys.argv[1:6])) or tiny(Path(folder), build_pico(Path(folder) / "pico"))
        main(paths, Path("merged"))
