"""The merged directory: whole or not there, where its sources are found, and what lies beside the weights."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.recipes.recipe import Recipe, Source
from tests.kit.merging import (
    ADDED,
    CAUSAL,
    EXPERTS,
    make_recipe,
    names,
    places,
    save_family,
    write,
)
from tests.kit.models import LLAMA, pico, rewritten
from tests.processes.waiting import exit_code, forked


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    path = tmp_path_factory.mktemp("family")
    save_family(path, pico(LlamaForCausalLM, LLAMA))
    return path


@pytest.fixture
def untied(family, tmp_path):
    """A family of its own, to be changed, and a recipe beside it that names it by relative paths."""
    path = shutil.copytree(family, tmp_path / "family")
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    experts = {name: Source(name, source.sha256) for name, source in recipe.experts.items()}
    return path, replace(recipe, base=Source("base", recipe.base.sha256), experts=experts)


# beside the weights


def test_what_is_beside_the_weights(untied, pico_suite, tmp_path):
    path, recipe = untied
    base = path / "base"
    GenerationConfig(max_new_tokens=7).save_pretrained(base)
    for file in pico_suite.base.glob("tokenizer*"):
        shutil.copy(file, base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    for name in ("training_args.bin", "modeling_own.py", "tokenization_own.py", "trainer_state.json", "README.md"):
        (base / name).write_text("base")
    (path / "heads").mkdir()
    save_file({"weight": torch.ones(2, 3)}, path / "heads" / "mood.safetensors")
    recipe = replace(recipe, heads={"mood": "heads/mood.safetensors"}, scores={"metric": "accuracy"})
    out = write(recipe, path, tmp_path / "out")
    assert names(out) == {
        *("config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "additional_chat_templates/tools.jinja", "heads/mood.safetensors"),
        *("BASE_README.md", *ADDED),
    }
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert Recipe.from_yaml((out / "recipe.yaml").read_text()) == recipe
    assert torch.equal(load_file(out / "heads" / "mood.safetensors")["weight"], torch.ones(2, 3))
    assert GenerationConfig.from_pretrained(out).max_new_tokens == 7
    templates = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    assert AutoTokenizer.from_pretrained(out).chat_template == templates
    assert yaml.safe_load((out / "README.md").read_text().split("---")[1])["base_model"] == ["base", *EXPERTS]
    assert len({file.stat().st_mode for file in out.iterdir() if file.is_file()}) == 1  # weights, too, can be read
    with safe_open(out / "model.safetensors", framework="pt") as handle:
        assert handle.metadata()["format"] == "pt"


@pytest.mark.parametrize("head", ["/heads/a.safetensors", "heads/../../a", "model.safetensors", "config.json"])
def test_heads_that_are_not_in_heads(untied, tmp_path, head):
    path, recipe = untied
    with pytest.raises(ConfigError, match=r"the head of mood must lie in heads/ beside it, as heads/mood\.safetensors"):
        write(replace(recipe, heads={"mood": head}), path, tmp_path / "out")


def test_heads_that_are_not_there(untied, tmp_path):
    path, recipe = untied
    with pytest.raises(ConfigError, match=r"The head of the task mood is not at .*: copy the recipe with the heads/"):
        write(replace(recipe, heads={"mood": "heads/mood.safetensors"}), path, tmp_path / "out")


# where the sources are


def test_sources_are_found_here_or_beside_the_recipe_or_where_one_says(untied, tmp_path, monkeypatch):
    path, recipe = untied
    first = write(recipe, path, tmp_path / "beside")
    monkeypatch.chdir(path)
    second = write(recipe, tmp_path, tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    shutil.move(path / "base", tmp_path / "elsewhere")
    shutil.move(path / "red", tmp_path / "crimson")
    given = {"base": tmp_path / "elsewhere", "experts": {"red": tmp_path / "crimson"}}
    third = write(recipe, path, tmp_path / "said", **given)
    contents = [(out / "model.safetensors").read_bytes() for out in (first, second, third)]
    assert contents[0] == contents[1] == contents[2]


def test_sources_that_are_not_there(untied, tmp_path):
    path, recipe = untied
    shutil.rmtree(path / "base")
    shutil.rmtree(path / "blue")
    with pytest.raises(ConfigError) as error:
        write(recipe, path, tmp_path / "out", experts={"red": tmp_path / "none"})
    assert str(error.value).splitlines() == [
        "Sources of the recipe are not there. Say where they are:",
        f"  the base is not at base or {path / 'base'}: --base DIR",
        f"  the expert red is not at {tmp_path / 'none'}: --expert red=DIR",
        f"  the expert blue is not at blue or {path / 'blue'}: --expert blue=DIR",
    ]
    with pytest.raises(ConfigError, match="--expert bleu: Unknown expert 'bleu': did you mean 'blue'"):
        write(recipe, path, tmp_path / "out", experts={"bleu": tmp_path})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "who"), [("base", "the base"), ("green", "the expert green")])
def test_other_weights_than_the_recipes(untied, tmp_path, name, who):
    path, recipe = untied
    rewritten(path / name, lambda held: {**held, "lm_head.weight": held["lm_head.weight"] + 1e-3})
    flag = "--base DIR" if name == "base" else "--expert green=DIR"
    message = rf"{who} in .* has other weights than the recipe was made from: their hash is [0-9a-f]{{12}}, and the "
    with pytest.raises(CheckpointError, match=message + rf"recipe says [0-9a-f]{{12}}\. Name .*{flag}"):
        write(recipe, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_class_that_transformers_does_not_have(untied, tmp_path):
    path, recipe = untied
    with pytest.raises(ConfigError, match="has no class AutoModelForFun: write auto_class: AutoModel"):
        write(replace(recipe, auto_class="AutoModelForFun"), path, tmp_path / "out")
    with pytest.raises(
        CheckpointError, match=r"cannot make the AutoModelForImageClassification of .*base: transformers has no"
    ):
        write(replace(recipe, auto_class="AutoModelForImageClassification"), path, tmp_path / "out")


def test_the_global_random_state_stays_as_it_is(untied, tmp_path):
    path, recipe = untied
    before = torch.get_rng_state()
    write(recipe, path, tmp_path / "out")
    assert torch.equal(before, torch.get_rng_state())


# the directory


def test_the_same_merge_again_has_nothing_to_do(untied, tmp_path, capsys):
    path, recipe = untied
    out = write(recipe, path, tmp_path / "out")
    stamps = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    shutil.rmtree(path)  # it needs no source for that
    assert write(recipe, path, tmp_path / "out") == out
    assert "is this very merge already: nothing to do" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == stamps
    for other in ({"dtype": "bfloat16"}, {"max_shard_size": "40KB"}):
        with pytest.raises(
            ConfigError, match="out holds another merge, and nothing is overwritten: name a new directory"
        ):
            write(recipe, path, out, **other)
    with pytest.raises(ConfigError, match="holds another merge"):
        write(replace(recipe, scores={"a": 1}), path, out)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "merge.json"])
def test_a_merge_that_was_damaged_is_not_taken_for_done(untied, tmp_path, damage):
    path, recipe = untied
    out = write(recipe, path, tmp_path / "out")
    (out / damage).unlink()
    with pytest.raises(ConfigError, match="holds other files, and nothing is overwritten"):
        write(recipe, path, out)


def test_directories_that_are_in_use(untied, tmp_path):
    path, recipe = untied
    with pytest.raises(ConfigError, match="base holds other files, and nothing is overwritten"):
        write(recipe, path, path / "base")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file, and nothing is overwritten"):
        write(recipe, path, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write(recipe, path, tmp_path / "empty")
    write(recipe, path, tmp_path / "new" / "deep")
    assert names(tmp_path / "empty") == names(tmp_path / "new" / "deep")
    assert not list(tmp_path.glob(".*"))


def test_two_at_once(untied, tmp_path):
    path, recipe = untied
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(ConfigError, match=r"Another process is writing to .*out: wait"),
    ):
        write(recipe, path, tmp_path / "out")
    write(recipe, path, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_wrong_settings_come_first(untied, tmp_path):
    _, recipe = untied
    for size in ("5", "GB", "5 apples", "-1GB"):
        with pytest.raises(ConfigError, match=r"shard size .* cannot be read: write 5GB or 500MB"):
            write(recipe, tmp_path / "nowhere", tmp_path / "out", max_shard_size=size)
    with pytest.raises(ConfigError, match="--dtype: Unknown dtype 'bfloat'"):
        write(recipe, tmp_path / "nowhere", tmp_path / "out", dtype="bfloat")


def test_no_room(untied, tmp_path, monkeypatch):
    path, recipe = untied
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=rf"needs 0\.00 GiB, and {tmp_path} has 0\.00 GiB left: make room, or"):
        write(recipe, path, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


# kills


def dying(recipe: Recipe, path: Path, out: Path, after: str) -> None:
    """Merge in a process that is killed: after a weight file, at the model card, before or after config.json."""
    from evomerge.common import directories
    from evomerge.recipes import model, shards

    def die_after(function):
        def both(*args, **kwargs):
            function(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        return both

    module, name = {
        "shard": (shards, "save_file"),
        "card": (model, "model_card"),
        "config": (model, "write_config"),
        "sync": (directories, "sync"),
    }[after]
    setattr(module, name, die_after(getattr(module, name)))
    write(recipe, path, out, max_shard_size="30KB")


@pytest.mark.parametrize("after", ["shard", "card", "config", "sync"])
def test_a_killed_merge_leaves_nothing_that_loads(untied, tmp_path, after):
    path, recipe = untied
    out = tmp_path / "out"
    expected = names(write(recipe, path, tmp_path / "expected", max_shard_size="30KB"))
    with forked(dying, recipe, path, out, after) as process:
        assert exit_code(process) == -signal.SIGKILL
    assert not out.exists()
    (left,) = tmp_path.glob(".out.partial-*")
    assert list(left.glob("*.safetensors"))
    assert (left / "config.json").exists() == (after in ("config", "sync"))
    write(recipe, path, out, max_shard_size="30KB")
    assert names(out) == expected
    assert not list(tmp_path.glob(".*"))


def test_a_merge_that_fails_leaves_nothing(untied, tmp_path, monkeypatch):
    path, recipe = untied

    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evomerge.recipes.model.model_card", broken)
    with pytest.raises(KeyboardInterrupt):
        write(recipe, path, tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"family"}
