"""Models by their names on the hub: from its cache alone, from a server, and what is written about them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from evomerge.cli.main import main
from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.models.hub import find_directory, is_name, name_directories, short_name
from evomerge.models.live import load_skeleton
from evomerge.recipes.card import model_card
from evomerge.recipes.mergekit.write import to_mergekit
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runs.run import run_search
from evomerge.runs.schema import ModelConfig
from evomerge.runs.sources import find_sources
from evomerge.selection.named import find_model
from tests.kit.helpers import compose
from tests.kit.hub import COMMIT, in_cache, point_at, serving
from tests.kit.language import documents, save_language_family, write_jsonl
from tests.kit.merging import CAUSAL, make_recipe, names, write
from tests.kit.models import LLAMA, pico, to_bin

OTHER = COMMIT[::-1]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_language_family(tmp_path_factory.mktemp("hub"))
    write_jsonl(path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    return path


@pytest.fixture
def cache(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a base and two experts; the working directory has none of them."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(path))
    for name in ("base", "left", "right"):
        in_cache(path, f"lab/{name}", family / name)
    return path


def found(base: str, experts: Any):
    return find_sources({**asdict(ModelConfig()), "name": "own", "base": base, "experts": experts}, {"t": "t.jsonl"})


# from the cache alone


def test_a_name_is_its_snapshot_in_the_cache(cache: Path) -> None:
    place = find_directory("lab/base")
    assert place.path == cache / "models--lab--base" / "snapshots" / COMMIT
    assert place.hub == f"lab/base@{COMMIT}"
    assert find_directory(f"lab/base@{COMMIT}") == find_directory("lab/base@main") == place


def test_revisions(cache: Path, family: Path) -> None:
    in_cache(cache, "lab/base", family / "right", OTHER, ref="v2")
    assert find_directory("lab/base@v2").hub == f"lab/base@{OTHER}"
    assert find_directory(f"lab/base@{OTHER}").path.name == OTHER
    assert find_directory("lab/base").path.name == COMMIT


def test_a_directory_wins(cache: Path, family: Path) -> None:
    shutil.copytree(family / "left", "lab/base")
    assert not is_name("lab/base")
    assert (find_directory("lab/base").path, find_directory("lab/base").hub) == (Path("lab/base"), None)
    Path("lab/base@v2").mkdir()
    assert find_directory("lab/base@v2").hub is None
    assert short_name("lab/base@v2") == "base@v2"


@pytest.mark.parametrize(
    "text", ["base", "./lab/none", "/lab/none", "../x/none", "a/b/c", "~/none", "lab/none/", "lab/n o"]
)
def test_what_is_no_name_is_left_as_it_is(cache: Path, text: str) -> None:
    assert (find_directory(text).path, find_directory(text).hub) == (Path(text), None)


def test_what_is_not_in_the_cache(cache: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"no directory lab/none, and .*HF_HUB_OFFLINE is set\. Write the path .*`hf download lab/none`",
    ):
        find_directory("lab/none")
    with pytest.raises(CheckpointError, match=r"`hf download lab/base --revision v9`"):
        find_directory("lab/base@v9")
    (cache / "models--lab--left" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"lab/left was found .*holds no weights.*hf download lab/left --revision"
    ):
        find_directory("lab/left")


def test_names_that_tell_models_apart() -> None:
    assert name_directories(["a", "x/b/", "lab/c@main"]) == {"a": "a", "b": "x/b/", "c": "lab/c@main"}
    assert name_directories(["a/last", "b/last"]) == {"a/last": "a/last", "b/last": "b/last"}
    assert name_directories(["lab/c@one", "lab/c@two"]) == {"c@one": "lab/c@one", "c@two": "lab/c@two"}
    with pytest.raises(ConfigError, match="named twice"):
        name_directories(["a", "b/../a"])


def test_sources_by_name(cache: Path, family: Path) -> None:
    sources = found("lab/base", ["lab/left@main", "lab/right", str(family / "base")])
    assert list(sources.experts) == ["left", "right", "base"]
    assert sources.hub == {"": f"lab/base@{COMMIT}", "left": f"lab/left@{COMMIT}", "right": f"lab/right@{COMMIT}"}
    assert all(path.is_dir() for path in (sources.base, *sources.experts.values()))
    sources = found(str(family / "base"), {"first": "lab/left", "second": "lab/right@main"})
    assert sources.hub == {"first": f"lab/left@{COMMIT}", "second": f"lab/right@{COMMIT}"}
    with pytest.raises(ConfigError, match="Two experts have the same directory name"):
        found("lab/base", ["lab/left", "lab/left@main"])
    with pytest.raises(CheckpointError, match="no directory lab/none"):
        found("lab/base", ["lab/none"])


def settings(tmp_path: Path, family: Path, *more: str) -> list[str]:
    return [
        "fitness=perplexity",
        "model.base=lab/base",
        "model.experts=[lab/left,lab/right@main]",
        f"model.cache={tmp_path}/cache",
        f"model.auto_class={CAUSAL}",
        "model.device=cpu",
        f"fitness.tasks={{mine: {{task: {family}/texts.jsonl}}}}",
        "space=model",
        *more,
    ]


def test_a_search_is_written_down_by_commit(cache: Path, family: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    given = settings(tmp_path, family, "budget=3", "searcher=random")
    assert run_search(compose(*given), tmp_path / "run", Reporter()) is not None
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    recipe = Recipe.from_yaml(text)
    assert recipe.base.hub == f"lab/base@{COMMIT}"
    assert [source.hub for source in recipe.experts.values()] == [f"lab/left@{COMMIT}", f"lab/right@{COMMIT}"]
    assert recipe.to_yaml() == text
    document = yaml.safe_load((tmp_path / "run" / "mergekit.yaml").read_text())
    assert document["base_model"] == f"lab/base@{COMMIT}"
    assert [row["model"] for row in document["models"]] == [f"lab/left@{COMMIT}", f"lab/right@{COMMIT}"]
    before = (write(recipe, tmp_path / "run", tmp_path / "here") / "model.safetensors").read_bytes()
    # another machine: another cache, and the same models in it
    moved = tmp_path / "elsewhere"
    shutil.move(cache, moved)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(moved))
    main(["merge", str(tmp_path / "run" / "recipe.yaml"), str(tmp_path / "there")])
    assert (tmp_path / "there" / "model.safetensors").read_bytes() == before
    card = ModelCard((tmp_path / "there" / "README.md").read_text())
    assert card.data.to_dict()["base_model"] == ["lab/base", "lab/left", "lab/right"]
    capsys.readouterr()
    tasks = f"fitness.tasks={{mine: {{task: {family}/texts.jsonl}}}}"
    copied = shutil.copy(tmp_path / "run" / "recipe.yaml", tmp_path / "mine.yaml")
    main(["evaluate", str(copied), "fitness=perplexity", tasks, f"model.cache={tmp_path}/cache", "--json"])
    assert str(copied) in json.loads(capsys.readouterr().out)["models"]


def test_merge_holds_what_it_finds_against_the_hash(cache: Path, family: Path, tmp_path: Path) -> None:
    recipe = make_recipe(family / "base", {name: family / name for name in ("left", "right")}, auto_class=CAUSAL)
    gone = {name: Source(f"gone/{name}/x", one.sha256, f"lab/{name}@{COMMIT}") for name, one in recipe.experts.items()}
    recipe = replace(recipe, experts=gone)
    write(recipe, tmp_path, tmp_path / "out")
    swapped = {**gone, "left": replace(gone["left"], hub=f"lab/right@{COMMIT}")}
    with pytest.raises(CheckpointError, match=r"expert left in .* has other weights than the recipe was made from"):
        write(replace(recipe, experts=swapped), tmp_path, tmp_path / "other")
    lost = {**gone, "left": replace(gone["left"], hub=f"lab/none@{COMMIT}")}
    with pytest.raises(
        ConfigError, match=r"expert left is not at gone/left/x .*--expert left=DIR .*hf download lab/none"
    ):
        write(replace(recipe, experts=lost), tmp_path, tmp_path / "other")
    named = write(replace(recipe, experts=lost), tmp_path, tmp_path / "named", experts={"left": Path("lab/left@main")})
    assert (named / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_inspect_takes_names(cache: Path, tmp_path: Path, capsys) -> None:
    common = [f"model.cache={tmp_path}/cache", f"model.auto_class={CAUSAL}", "--json"]
    main(["inspect", "lab/base", "lab/left", "lab/right@main", *common])
    one = json.loads(capsys.readouterr().out)
    main(["inspect", "model.base=lab/base", "model.experts={left: lab/left, right: lab/right@main}", *common])
    two = json.loads(capsys.readouterr().out)
    assert one["compared"] == two["compared"] == ["left", "right"]
    assert one["whole"] == two["whole"]
    assert COMMIT in one["base"]["path"]


def test_evaluate_takes_names(cache: Path) -> None:
    assert find_model("lab/left", ()).value == cache / "models--lab--left" / "snapshots" / COMMIT
    with pytest.raises(CheckpointError, match="no directory lab/none"):
        find_model("lab/none", ())
    Path("lab").mkdir()
    with pytest.raises(ConfigError, match="There is no lab/none"):
        find_model("lab/none", ())


def test_sources_in_recipes_cards_and_yaml(family: Path, tmp_path: Path) -> None:
    recipe = make_recipe(family / "base", {"left": family / "left"}, granularity="model", auto_class=CAUSAL)
    assert "hub:" not in recipe.to_yaml()
    named = replace(recipe, base=replace(recipe.base, hub=f"lab/base@{COMMIT}"))
    assert Recipe.from_yaml(named.to_yaml()) == named
    with pytest.raises(ConfigError, match=r"recipe: base\.hub must be of type str"):
        Recipe.from_yaml(named.to_yaml().replace(f"lab/base@{COMMIT}", "[1]"))
    live = load_skeleton(family / "base", CAUSAL)
    card = model_card(named, family / "base", {"left": family / "left"}, live.parameters)
    assert ModelCard(card).data.to_dict()["base_model"] == ["lab/base", "left"]
    assert "--base" not in card
    assert "--expert left=path/to/left" in card
    text = to_mergekit(named, {name: name for name in live.parameters}, live.parameters, "float32", (), live.tied)
    document = yaml.safe_load(text)
    assert (document["base_model"], document["models"][0]["model"]) == (f"lab/base@{COMMIT}", str(family / "left"))


# from a server


@contextmanager
def hub_of(name: str, model: Path, cache: Path) -> Iterator[list[str]]:
    """Let a server be the hub, with a model under a name; gives what it has been asked."""
    with serving(name, model) as (endpoint, asked), pytest.MonkeyPatch.context() as patch:
        point_at(patch, endpoint, cache)
        yield asked


def said_of(*names: str) -> list[str]:
    """What is found under each name, or why nothing is."""
    said: list[str] = []
    for name in names:
        try:
            said.append(str(find_directory(name).hub))
        except CheckpointError as error:
            said.append(str(error))
    return said


def test_download(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shutil.copytree(family / "base", tmp_path / "model")
    (model / "modeling_own.py").write_text("raise SystemExit('code was run')")
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    for folder in ("onnx", "1_Pooling", "2_Dense"):
        (model / folder).mkdir()
    unasked = ["pytorch_model.bin", "consolidated.safetensors", "onnx/config.json", "onnx/model.onnx", "onnx/a.jinja"]
    unasked += ["trainer_state.json", "pytorch_model.bin.index.json", "tf_model.h5.index.json", ".gitattributes"]
    for name in unasked:
        (model / name).write_bytes(b"never asked for")
    (model / "modules.json").write_text('[{"path": "1_Pooling"}, {"path": "2_Dense"}]')
    beside = ["LICENSE", "source.spm", "vocab[1].bpe", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    for name in beside:
        (model / name).write_text(name)
    with hub_of("lab/tiny", model, tmp_path / "hub") as asked:
        one, two, lacking, nobody = said_of("lab/tiny", "lab/tiny@main", "lab/tiny@v9", "lab/none")
        assert one == two == f"lab/tiny@{COMMIT}"
        assert "lab/tiny is there, but has no revision v9" in lacking
        assert "there is no model lab/none, or you may not read it" in nobody
        lines = [line.partition("/resolve/")[2] for line in asked if line.startswith("GET /lab/tiny/resolve")]
        gotten = {line.partition("/")[2] for line in lines}
        snapshot = tmp_path / "hub" / "models--lab--tiny" / "snapshots" / COMMIT
        assert gotten == names(snapshot)
        assert gotten == names(family / "base") | {"README.md", "modules.json", *beside}
    # the network says nothing
    monkeypatch.setattr("evomerge.models.hub.QUICK", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        point_at(monkeypatch, endpoint, tmp_path / "hub")
        assert said_of(f"lab/tiny@{COMMIT}") == [f"lab/tiny@{COMMIT}"]
        assert time.monotonic() - began < 60
    # the network is gone
    held, nobody = said_of("lab/tiny", "lab/none")
    assert held == f"lab/tiny@{COMMIT}"
    assert "lab/none, and as the name of a model on the hub" in nobody
    assert "the hub gives no answer (ConnectError" in nobody
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert said_of("lab/tiny@main") == [f"lab/tiny@{COMMIT}"]


def test_download_of_a_model_of_earlier_years(tmp_path: Path) -> None:
    pico(LlamaForCausalLM, LLAMA).save_pretrained(tmp_path / "model", max_shard_size="30KB")
    to_bin(tmp_path / "model")
    (tmp_path / "model" / "training_args.bin").write_bytes(b"never asked for")
    (tmp_path / "model" / "adapter_model.safetensors").write_bytes(b"an adapter beside whole weights")
    with hub_of("lab/old", tmp_path / "model", tmp_path / "hub") as asked:
        assert said_of("lab/old") == [f"lab/old@{COMMIT}"]
        assert sum(".bin" in line for line in asked if line.startswith("GET")) >= 3
        assert not any("training_args" in line for line in asked)


def test_download_of_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings and weights, and the tokenizer beside them; from the cache as well, where the hub is gone."""
    (tmp_path / "adapter").mkdir()
    save_file({"w": torch.zeros(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter" / "training_args.bin").write_bytes(b"never asked for")
    with hub_of("lab/lora", tmp_path / "adapter", tmp_path / "hub") as asked:
        assert said_of("lab/lora") == [f"lab/lora@{COMMIT}"]
        assert not any("training_args" in line for line in asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert said_of(f"lab/lora@{COMMIT}") == [f"lab/lora@{COMMIT}"]


def test_the_command_downloads(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(family / "left", tmp_path / "left")
    with hub_of("lab/tiny", family / "base", tmp_path / "hub"):
        main(["inspect", "lab/tiny", "left", f"model.cache={tmp_path}/cache", f"model.auto_class={CAUSAL}", "--json"])
    assert json.loads(capsys.readouterr().out)["compared"] == ["left"]


def test_the_environment_says_where_the_hub_is(family: Path, tmp_path: Path) -> None:
    """In a process of its own, since huggingface_hub reads it when it is imported; nothing warns."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    code = "from evomerge.models.hub import find_directory; print(find_directory('lab/tiny').hub)"
    with serving("lab/tiny", family / "base") as (endpoint, _):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            env=environment | {"HF_ENDPOINT": endpoint},
            capture_output=True,
            text=True,
        )
    assert done.stdout == f"lab/tiny@{COMMIT}\n", done.stderr
