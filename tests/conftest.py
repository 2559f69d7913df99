"""Fixtures shared by all tests: the pico suite, built once per session, and its problem."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Libraries and thousands of tests stay: no collection of garbage walks through them, now or later, which would
    take a third of the time in which tests are found.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, and lose much on a machine that is busy with other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Writes need not reach the disk: a process that is killed loses nothing of what the system has, and nobody cuts
    the power in a test. Tests of what is synced put their own function there, and processes of their own sync as ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def logs_of_runs_are_closed() -> Iterator[None]:
    """A search in this process leaves its log file open, as a command may; who sets up logging next would drop it."""
    yield
    for logger in (logging.getLogger(), logging.getLogger("evomerge.cli.progress")):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).name == "evomerge.log":
                logger.removeHandler(handler)
                handler.close()


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Verbs of the command in this process take the short way to a configuration, as tests do."""
    from tests.kit.helpers import compose

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.cli.settings.compose", lambda name, overrides: compose(*overrides))
        yield


@pytest.fixture(scope="session")
def pico_suite(tmp_path_factory: pytest.TempPathFactory, worker_id: str):
    """The pico suite; under xdist one worker builds it (build_pico takes a lock) and the others open it."""
    from evomerge.demo.pico import build_pico

    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent
    return build_pico(Path(root) / "suites" / "pico")


@pytest.fixture(scope="session")
def problem(pico_suite, tmp_path_factory: pytest.TempPathFactory):
    """Everything that a search on the pico suite is made of. Tests that merge must restore."""
    from evomerge.cli.progress import Reporter
    from evomerge.runs.build import build_problem
    from evomerge.runs.config import plain
    from tests.kit.helpers import compose

    overrides = [
        "model=pico",
        f"model.suite={pico_suite.path}",
        f"model.cache={tmp_path_factory.mktemp('cache')}",
        "model.device=cpu",
    ]
    return build_problem(plain(compose(*overrides)), Reporter())


@pytest.fixture(scope="session")
def vision_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico DINOv2, two experts with heads of their own, and images, as `tests.kit.vision.save_family` writes them:
    the base as transformers saves it (under names of earlier years), one expert so, one under the live names."""
    from tests.kit.vision import save_family

    path = tmp_path_factory.mktemp("vision")
    save_family(path, {"base": True, "digits": False, "letters": True})
    return path


@pytest.fixture(scope="session")
def language_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico language model and two experts, as `tests.kit.language.save_language_family` writes them."""
    from tests.kit.language import save_language_family

    return save_language_family(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Language models with more and fewer tokens than their base, as `tests.kit.vocabularies` writes them."""
    from tests.kit.vocabularies import save_families

    return save_families(tmp_path_factory.mktemp("vocabularies"))


@pytest.fixture(scope="session")
def own_classifiers(pico_suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a base without a head, two classifiers tuned from it with heads of their own, and data."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    from evomerge.fitness.items import Item, item_id, write_items

    path = tmp_path_factory.mktemp("own")
    base = BertModel.from_pretrained(pico_suite.base)
    base.save_pretrained(path / "base")
    tokenizer_files = [file for file in pico_suite.base.iterdir() if "token" in file.name]
    for k, (name, classes) in enumerate({"mood": 2, "topic": 3}.items()):
        config = BertConfig.from_pretrained(pico_suite.base, num_labels=classes)
        with torch.random.fork_rng():
            torch.manual_seed(k)
            model = BertForSequenceClassification(config)
        model.bert.load_state_dict(base.state_dict())
        generator = torch.Generator().manual_seed(k)
        for parameter in model.bert.encoder.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(path / name)
        items = [
            Item(item_id(f"ba{i} keke {name} {i}", i % classes), f"ba{i} keke {name} {i}", i % classes)
            for i in range(60)
        ]
        write_items(path / f"{name}.jsonl", items)
    for file in tokenizer_files:
        for name in ("base", "mood", "topic"):
            (path / name / file.name).write_bytes(file.read_bytes())
    return path
