"""The command on the page composes to the settings of the run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evomerge.cli.settings import compose_settings, spelled_out
from evomerge.report.command import arguments, command, written
from evomerge.runs.config import CONF, plain
from tests.kit.helpers import compose

FILES = {
    group: sorted(file.stem for file in (CONF / group).glob("[!_]*.yaml") if file.stem != "custom")  # it needs more
    for group in ("model", "method", "space", "searcher", "fitness", "loss")
}
CHOICES = [  # every file of every group, in as few compositions as there are files in the largest group
    [f"{group}={names[i % len(names)]}" for group, names in FILES.items()] for i in range(max(map(len, FILES.values())))
]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        *CHOICES,
        ["experiment=smoke"],
        ["experiment=adamerging_pp", "model=text"],
        ["fitness=custom", "fitness.function=my file.py:score"],
        ["space=blocks:6", "seed=3", "budget=17", "budget_items=4000"],
        ["space=chunk:2", "start=0.3"],
        ["start=1/K", "searcher=hybrid", "searcher.first.steps=12", "searcher.second.sigma=0.2"],
        ["start=null", "fitness.items=null", "fitness.rotate=true"],
        ["space.frozen={weight/encoder.layer.0/*: 0.4, weight/*/b: 1}", "space.tied=[weight/*/a,'weight/e.w[0:10]/a']"],
        ["space.bounds.weight=[-0.5,1]", "objective.weights.news=2", "objective.aggregate=worst"],
        [
            "model.base='/a b/it\\'s'",
            "model.experts={x: p/q, y: 'r,s'}",
            "fitness.tasks={x: {items: x.jsonl, classes: [no, 'yes', 1]}}",
        ],
        [
            "model.name=null_model",
            "model.cache='007'",
            "searcher=gradient",
            "searcher.betas=[0.8,0.99]",
            "searcher.lr=1e-5",
        ],
        ["method=ties_frozen", "method.transform.density=0.35", "searcher.keep=9"],
    ],
    ids=" ".join,
)
def test_it_composes_to_the_same_settings(overrides: list[str]) -> None:
    settings = plain(compose(*[part for override in overrides for part in spelled_out(override)]))
    text = command(settings, "runs/a b")
    assert text is not None
    program, verb, *given, directory = shlex.split(text)
    assert (program, verb) == ("evomerge", "search")
    assert directory == "hydra.run.dir='runs/a b'"
    assert plain(compose_settings(given)) == settings


def test_it_is_as_short_as_a_person_would_write_it() -> None:
    settings = plain(compose("model=text", "space=tensor", "searcher=gradient", "loss=entropy", "seed=2"))
    assert arguments(settings) == ["model=text", "space=tensor", "searcher=gradient", "loss=entropy", "seed=2"]
    assert arguments(plain(compose("space=blocks", "space.n=6"))) == ["space=blocks", "space.n=6"]


def test_a_class_of_ones_own_keeps_its_settings() -> None:
    settings = plain(compose())
    settings["searcher"] = {"_target_": "mine.Searcher", "speed": 3}
    found = arguments(settings)
    assert found is not None
    composed = plain(OmegaConf.create(OmegaConf.to_container(compose_settings(found))))["searcher"]
    assert (composed["_target_"], composed["speed"]) == ("mine.Searcher", 3)


def test_what_has_no_command_has_none() -> None:
    settings = plain(compose())
    assert arguments({**settings, "searcher": None}) is None
    assert arguments({**settings, "colour": {"of": "${nothing}"}}) is None


def test_directories_are_relative_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert written(Path("runs/a")) == "runs/a"
    assert written(tmp_path / "runs" / "a") == "runs/a"
    assert written(tmp_path.parent) == str(tmp_path.parent.resolve())
