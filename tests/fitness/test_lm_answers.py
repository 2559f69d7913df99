"""What language models generate is no longer than it may be, and cut off nowhere else."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.fitness.lm_eval.harness import LmEval
from evomerge.fitness.lm_eval.requests import USUAL
from tests.kit.language import read, simple_evaluate, together, write_task


@pytest.fixture(scope="module")
def tokenizer(language_family: Path) -> Any:
    return AutoTokenizer.from_pretrained(language_family / "base")


@pytest.fixture
def model(language_family: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(language_family / "base").eval().requires_grad_(False)


def answers(paths: dict[str, Path], model: Any, tokenizer: Any, **settings: Any) -> tuple[LmEval, dict[str, list[str]]]:
    """What is generated, by task."""
    fitness, splits = read(paths, **settings)
    items = together(splits)
    prepared = fitness.prepare(tokenizer, items)
    fitness(model, prepared, {task: [item.id for item in chosen] for task, chosen in items.items()})
    return fitness, {
        task: [prepared.queries[task, item.id].instances[0].resps[0] for item in chosen]
        for task, chosen in items.items()
    }


def assert_cut_off(cut: list[str], whole: list[str], longest: int) -> None:
    assert all(long.startswith(short) for short, long in zip(cut, whole, strict=True))
    assert max(len(answer.split()) for answer in cut) == longest < max(len(answer.split()) for answer in whole)


LENGTHS = {
    "gen": {"max_gen_toks": 40},
    "new": {"max_new_tokens": 40},
    "tokens": {"max_tokens": 40, "max_completion_tokens": 50},
    "length": {"max_length": 60},  # of prompt and answer
}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, language_family: Path) -> dict[str, tuple[Path, list[str]]]:
    """A task for each way to ask for longer answers, and what lm-eval itself generates for it, in one call of it."""
    folder = tmp_path_factory.mktemp("tasks")
    paths = {
        name: write_task(
            folder,
            name,
            like="generated",
            generation_kwargs={"until": ["."], "do_sample": False, **length},
            filter_list=None,
        )
        for name, length in LENGTHS.items()
    }
    theirs = simple_evaluate(language_family / "base", paths)
    return {
        name: (path, sorted(sample["resps"][0][0] for sample in theirs[name].values())) for name, path in paths.items()
    }


@pytest.mark.parametrize("name", LENGTHS)
def test_answers_are_cut_off_where_a_task_asks_for_more(tokenizer, model, long, name):
    path, theirs = long[name]
    fitness, whole = answers({name: path}, model, tokenizer, max_gen_toks=None)
    assert sorted(whole[name]) == theirs
    assert not fitness.warnings
    fitness, cut = answers({name: path}, model, tokenizer, max_gen_toks=5)
    assert_cut_off(cut[name], whole[name], 5)
    asked = LENGTHS[name].get("max_length", 40)
    assert fitness.warnings == [
        f"pico_{name}: answers may have {asked} tokens, but are cut off at 5 here, so scores are not those of lm-eval "
        f"itself; fitness.max_gen_toks={asked} lifts that, and candidates take longer"
    ]
    fitness, same = answers({name: path}, model, tokenizer, max_gen_toks=60)
    assert same == whole
    assert not fitness.warnings


def test_a_length_of_the_models_own_is_cut_off_too(tmp_path, tokenizer, model):
    model.generation_config.max_new_tokens = 30
    paths = {"long": write_task(tmp_path, "long", like="generated", filter_list=None)}
    _, whole = answers(paths, model, tokenizer)
    _, cut = answers(paths, model, tokenizer, max_gen_toks=5)
    assert_cut_off(cut["long"], whole["long"], 5)


def test_a_task_that_names_no_length_has_that_of_lm_eval(tmp_path, tokenizer, model):
    from lm_eval.models.huggingface import HFLM

    assert HFLM.max_gen_toks.fget(None) == USUAL
    paths = {"open": write_task(tmp_path, "open", like="generated", generation_kwargs={"until": ["."]})}
    assert read(paths)[0].warnings == []
    assert "pico_open: answers may have 256 tokens, but are cut off at 9" in read(paths, max_gen_toks=9)[0].warnings[0]


def test_a_batch_ends_when_every_answer_has_whichever_string_ends_it(tmp_path, tokenizer, model):
    def task(name: str, until: list[str]) -> dict[str, Path]:
        kwargs = {"until": until, "max_gen_toks": 30, "do_sample": False}
        return {name: write_task(tmp_path, name, like="generated", generation_kwargs=kwargs, filter_list=None)}

    whole = answers(task("task", ["no such word"]), model, tokenizer)[1]["task"]
    ends = sorted({answer.split()[:3][-1] for answer in whole if answer})
    assert len(ends) > 1  # lm-eval waits for one that all of them say
    passes = list[int]()
    model.register_forward_hook(lambda *_: passes.append(1))
    fitness, ours = answers(task("task", ends), model, tokenizer)
    assert ours["task"] == [reduce(lambda said, end: said.split(end)[0], ends, answer) for answer in whole]
    assert any(ours["task"])
    batches = -(-len(whole) // fitness.batch_size)
    assert len(passes) <= batches * (1 + 3)  # of the reference, and for three words each
