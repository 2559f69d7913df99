"""The tasks of lm-evaluation-harness (Gao et al. 2021), loaded once, quickly, and without a trace in the process.

In: the name of a task, a tag or a group that lm-eval knows, or the path of a YAML. Out: its tasks, with their
documents. lm-eval reads 14,000 files to find one (11 s); here a name is first looked for in their text. It also draws
from Python's random numbers for a name, sets environment variables, and shows progress: `undisturbed` undoes that.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.common.exits import contained
from evomerge.common.names import nearest

OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
FILE_LOADERS = ("json", "csv", "parquet", "arrow", "text", "xml", "pandas")
"""Loaders of `datasets` that read files: documents of such a task are the user's own."""
ADDRESSES = ("hf://", "http://", "https://")
"""How files begin that `datasets` brings from elsewhere."""
HUB_CACHE = "datasets--"
"""How the cache of a hub calls the folders of data sets."""
NETWORK = ("ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "DatasetNotFoundError", "ConnectError")
"""Errors by which `datasets` says that a hub was not reached, or does not have what was asked for."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let lm-eval work without changing random states, environment, log levels or progress bars of the process."""
    environment, level = dict(os.environ), logging.getLogger("lm_eval").level
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  only put back as they were
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]), _no_bars():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        logging.getLogger("lm_eval").setLevel(level)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def load_tasks(spec: str, include: Sequence[Path], setting: str) -> list[Any]:
    """Return the tasks that a name or a YAML stands for: one, or those of a group or a tag.

    Args:
        spec: the name, or the path; or the path of the directory of a suite's task, beside which there is a YAML of its
            name. A name alone stands for a task of lm-eval where there is one.
        include: directories of further YAMLs, looked into before lm-eval's own.
        setting: what the user calls it, for messages.

    Raises:
        ConfigError: lm-eval is not installed, has no such task, or the task is none that can be scored here.
        SuiteError: its documents cannot be read.
    """
    try:
        with undisturbed():
            from lm_eval.tasks import TaskManager
            from lm_eval.tasks._yaml_loader import load_yaml
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"fitness=lm_eval needs lm-evaluation-harness, and {error.name} is not installed: "
            f"pip install 'evomerge[lm]'"
        ) from error
    path = Path(spec).expanduser()
    beside = path.with_name(f"{path.name}.yaml")
    path = beside if path.is_dir() and path.name != spec else path  # a name alone is first of all that of a task
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and not path.is_file():
        raise ConfigError(f"{setting} names {spec}, which is no file: write the path of a YAML of lm-eval, or a name.")
    try:
        with undisturbed():
            found = None
            if not is_file:
                try:
                    found = contained(lambda: _by_name(spec, include, setting))
                except ConfigError:
                    if not (path.is_dir() and beside.is_file()):
                        raise
                    path = beside
            if found is None:
                group = load_yaml(path, resolve_func=False).get("group")  # its tasks are looked for beside it
                manager = TaskManager(
                    include_path=[path.parent, *include] if group else [*include], include_defaults=False
                )
                found = contained(lambda: manager.load([group or _absolute(path)]))
    except (ConfigError, SuiteError):
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{setting}: the task {spec} needs {error.name}, which is not installed: pip install {error.name}, or "
            f"choose another task."
        ) from error
    except Exception as error:  # whatever the YAML, its functions and `datasets` may raise
        raise SuiteError(_why_not(spec, setting, error)) from error
    for task in found["tasks"].values():
        _check(task, setting)
        _remember(task)
    return list(found["tasks"].values())


def is_public(task: Any) -> bool:
    """Whether a task's documents are those of a benchmark: one of lm-eval's own tasks, or documents of a hub or of an
    address, and not of files, folders or functions of the user's own.
    """
    config = task.config
    if "/lm_eval/tasks/" in Path(str((config.metadata or {}).get("config_source", ""))).as_posix():
        return True
    if callable(config.custom_dataset):
        return False
    if config.dataset_path in FILE_LOADERS:
        files = _strings((getattr(config, "dataset_kwargs", None) or {}).get("data_files"))
        return any(file.startswith(ADDRESSES) or HUB_CACHE in file for file in files)
    folder = Path(str(config.dataset_path)).expanduser()
    return not folder.exists() or known_benchmark(folder)


def known_benchmark(folder: Path | str) -> bool:
    """Whether a folder bears the name of a data set that a task of lm-eval reads, as a copy from a hub does."""
    path = Path(folder).expanduser().resolve()
    return HUB_CACHE in str(path) or bool({path.name, f"{path.parent.name}/{path.name}"} & _benchmarks())


@cache
def _benchmarks() -> frozenset[str]:
    """Return the names of all data sets that lm-eval's own tasks read; none where it is not installed."""
    installed = find_spec("lm_eval")
    if installed is None or installed.origin is None:
        return frozenset()
    line = re.compile(rb"^dataset_path:[ '\"]*([^\s'\"]+)", re.MULTILINE)
    files = (Path(installed.origin).parent / "tasks").rglob("*.y*ml")
    return frozenset(name.decode() for file in files for name in line.findall(file.read_bytes())) - {*FILE_LOADERS}


def local_names(spec: str, tasks: Sequence[Any], setting: str) -> list[str]:
    """Say where a name stands for something else as well, and what was taken.

    Args:
        spec: as `load_tasks` takes it.
        tasks: what that returned.
        setting: what the user calls it.
    """
    said = []
    if Path(spec).name == spec and Path(spec).is_dir() and any(task.config.task == spec for task in tasks):
        said.append(
            f"{setting}: {spec} is taken as the task of that name, and the directory ./{spec} is not looked at; a YAML "
            f"of your own is written with its ending, {spec}.yaml"
        )
    for name in dict.fromkeys(str(task.config.dataset_path) for task in tasks if is_public(task)):
        if not Path(name).is_absolute() and Path(name).is_dir() and name not in FILE_LOADERS:
            said.append(
                f"{setting}: the documents of {spec} come from the folder ./{name}, which `datasets` takes before the "
                f"data set of that name on the hub"
            )
    return said


def _strings(value: Any) -> list[str]:
    """Return all texts in nested lists and mappings."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for one in inner for text in _strings(one)]


@contextmanager
def _no_bars() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()


def _by_name(name: str, include: Sequence[Path], setting: str) -> Any:
    """Load what has a name: of the user's directories, else lm-eval's own, found by its text, else by its index."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=list(include), include_defaults=False)
    if name in own.all_tasks:
        return own.load([name])
    line = re.compile(rb"^task:\s*['\"]?" + re.escape(name.encode()) + rb"['\"]?\s*$", re.MULTILINE)
    files = sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml"))
    if hits := [file for file in files if line.search(file.read_bytes())]:
        return own.load([str(hits[0])])
    whole = TaskManager(include_path=list(include))
    if name not in whole.all_tasks:
        near = nearest(name, whole.all_tasks, n=3)
        raise ConfigError(
            f"{setting}: lm-eval has no task '{name}'. "
            + (f"Did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them all.")
        )
    return whole.load([name])


def _absolute(path: Path) -> Any:
    """Return what `TaskManager.load` takes of a YAML: its path; or its content, where it names files or a folder beside
    it, since lm-eval itself would look for them where the command runs.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path)
    folder = path.resolve().parent / str(config.get("dataset_path"))
    if "task" in config and not Path(str(config.get("dataset_path"))).exists() and folder.is_dir():
        return config | {"dataset_path": str(folder)}
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if "task" not in config or config.get("dataset_path") not in FILE_LOADERS or files is None:
        return str(path)

    def beside(value: Any) -> Any:
        if isinstance(value, str):
            there = path.resolve().parent / value
            return str(there) if not Path(value).exists() and there.exists() else value
        if isinstance(value, dict):
            return {name: beside(one) for name, one in value.items()}
        return [beside(one) for one in value]

    return config | {"dataset_kwargs": config["dataset_kwargs"] | {"data_files": beside(files)}}


def data_sets(tasks: Sequence[Any]) -> list[str]:
    """Return the names of the data sets of tasks: path, subset, and what lm-eval calls the task itself."""
    names = [name for task in tasks for name in (task.config.dataset_path, task.config.dataset_name, task.config.task)]
    return [str(name) for name in dict.fromkeys(names) if name]


def _check(task: Any, setting: str) -> None:
    """Refuse what cannot be scored on a live model of text, again and again, with the same result."""
    name = task.config.task
    if task.OUTPUT_TYPE not in OUTPUT_TYPES:
        raise ConfigError(
            f"{setting}: {name} has the output type {task.OUTPUT_TYPE}; there is {', '.join(OUTPUT_TYPES)}."
        )
    if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
        what = "takes images or sound" if getattr(task, "MULTIMODAL", False) else "runs code that models write"
        raise ConfigError(f"{setting}: {name} {what}, which a search does not do: choose another task.")
    given = task.config.generation_kwargs or {}
    samples = given.get("do_sample", float(given.get("temperature") or 0) > 0)
    if task.OUTPUT_TYPE == "generate_until" and (samples or task.config.repeats > 1):
        raise ConfigError(
            f"{setting}: {name} draws its answers at random (generation_kwargs, repeats), so a score would not be the "
            f"model's: copy its YAML, write do_sample: false and repeats: 1, and name the copy."
        )


def _remember(task: Any) -> None:
    """Let a task render each document once: lm-eval compiles its templates anew (1 ms each) whenever it scores one."""

    def remembering(render: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[int, tuple[Any, Any]] = {}

        def rendered(doc: Any, template: Any = None) -> Any:
            if template is not None:  # that of few-shot examples
                return render(doc, template)
            if id(doc) not in known:
                known[id(doc)] = doc, render(doc)  # the document as well, so that no other gets its address
            return known[id(doc)][1]

        return rendered

    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, remembering(getattr(task, name)))


def _why_not(spec: str, setting: str, error: Exception) -> str:
    """Say why a task cannot be loaded, and what to do about it."""
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0][:300]
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain += [kind.__name__ for kind in type(cause).__mro__]
        cause = cause.__cause__ or cause.__context__
    if set(NETWORK) & set(chain):
        return (
            f"{setting}: the documents of {spec} come from a hub, which was not reached, and they are in no cache of "
            f"this machine ({text}). Load the task once where there is a network, and bring the cache (HF_HOME); or "
            f"write a YAML with dataset_path: json and data_files of your own."
        )
    return f"{setting}: lm-eval cannot load {spec} ({text}). `lm-eval validate --tasks {spec}` tells more."
