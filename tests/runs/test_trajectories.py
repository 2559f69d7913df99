"""The checkpoints of a training run in place of experts: their order, their means, and the statistics of batch norm."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from evomerge.cli.main import main
from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.models.trajectory import base_of, find_checkpoints
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem, find_start
from evomerge.runs.config import plain
from evomerge.runs.directory import open_run
from evomerge.runs.paths import from_its_start
from evomerge.runs.run import run_search
from evomerge.runs.sources import find_sources
from evomerge.space.named import array_coefficients
from tests.kit.adapters import folded_by_peft, llama, save_adapter
from tests.kit.helpers import compose
from tests.kit.language import write_jsonl
from tests.kit.merging import write
from tests.kit.models import pico

CONFIG = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
STEPS = (5, 10, 15, 20)
IMAGES = """
import torch

def images(numbers):
    return torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(n)) + n % 4 for n in numbers])

def score(model, items):
    said = model(pixel_values=images([int(item.text) for item in items]))
    return said.logits.log_softmax(-1)[range(len(items)), [item.label for item in items]].tolist()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of a pico ResNet, which leaves a checkpoint every five steps, and items."""
    path, names = tmp_path_factory.mktemp("trained"), dict[str, Any]()
    (path / "mine.py").write_text(IMAGES)
    exec(IMAGES, names)
    model = pico(ResNetForImageClassification, CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.3).add_(1.0 if "normalization.weight" in name else 0.0)
    model.train()
    for step in range(1, STEPS[-1] + 1):
        numbers = [*range(8 * step, 8 * step + 8)]
        loss = model(pixel_values=names["images"](numbers), labels=torch.tensor([n % 4 for n in numbers])).loss
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        model.zero_grad()
        if step in STEPS:
            model.save_pretrained(path / "run" / f"checkpoint-{step}")
            torch.save({}, path / "run" / f"checkpoint-{step}" / "optimizer.pt")
    write_jsonl(path / "items.jsonl", [{"text": str(1000 + i), "label": i % 4} for i in range(40)])
    return path


def settings(trained: Path, *more: str) -> Any:
    return compose(
        f"model.trajectory={trained}/run/checkpoint-*",
        f"model.cache={trained / 'cache'}",
        "model.auto_class=AutoModelForImageClassification",
        "model.device=cpu",
        "fitness=custom",
        f"fitness.function={trained}/mine.py:score",
        f"fitness.tasks={{it: {trained}/items.jsonl}}",
        "space=model",
        "searcher=random",
        "budget=1",
        *more,
    )


def mean(trained: Path, weights: Mapping[int, float]) -> dict[str, Tensor]:
    held = {n: load_file(trained / "run" / f"checkpoint-{n}" / "model.safetensors") for n in weights}
    names = [name for name, tensor in held[STEPS[0]].items() if tensor.is_floating_point()]
    return {name: sum(weight * held[n][name].double() for n, weight in weights.items()).float() for name in names}


def is_statistic(name: str) -> bool:
    return "running_" in name


def test_a_merge_is_the_mean_of_checkpoints_in_the_order_of_their_steps(trained, tmp_path, capsys):
    main(["merge", f"{trained}/run/checkpoint-*", str(tmp_path / "ema"), "--weights", "{ema: {decay: 0.9}}"])
    said = capsys.readouterr().err
    assert "weights: checkpoint-5 0.729, checkpoint-10 0.081, checkpoint-15 0.09, checkpoint-20 0.1\n" in said
    assert "running statistics are the mean of those of the checkpoints" in said
    merged = load_file(tmp_path / "ema" / "model.safetensors")
    expected = mean(trained, dict(zip(STEPS, (0.729, 0.081, 0.09, 0.1), strict=True)))
    alike = mean(trained, dict.fromkeys(STEPS, 0.25))
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], alike[name] if is_statistic(name) else tensor)
    assert not (tmp_path / "ema" / "optimizer.pt").exists()
    some = ",".join(f"{trained}/run/checkpoint-{n}" for n in (20, 10, 15))
    main(["merge", f"[{some}]", str(tmp_path / "own"), "--weights={lawa: {last: 2}}"])
    assert "weights: checkpoint-10 0.5, checkpoint-15 0.5; the 1 before them do not count" in capsys.readouterr().err
    own = load_file(tmp_path / "own" / "model.safetensors")
    for name, tensor in mean(trained, {5: 0.0, 10: 0.5, 15: 0.5}).items():
        torch.testing.assert_close(own[name], tensor)


def test_a_search_begins_with_the_mean_and_takes_statistics_anew(trained, tmp_path):
    given = settings(trained, "start={wsm: {shape: cosine}}", "model.buffers=recalibrate", "baselines=[swa,0.3]")
    summary = run_search(given, tmp_path / "run", Reporter())
    assert summary is not None
    assert {"start swa", "start 0.3"} <= set(summary.select.finalists)
    problem = build_problem(plain(given), Reporter())
    assert list(problem.sources.experts) == [f"checkpoint-{n}" for n in STEPS]
    assert problem.sources.base.name == "checkpoint-5"
    assert problem.experts == {"it": "checkpoint-20"}  # the row of the report that it must beat
    weights = [0.146447, 0.353553, 0.353553, 0.146447]
    coefficients = problem.space.decode(open_run(tmp_path / "run").batches[0].points[0])
    assert coefficients["weight"][0] == pytest.approx([0, *weights[1:]], abs=1e-6)  # the oldest is the base
    problem.merger.apply(coefficients)
    tensors, expected = problem.live.model.state_dict(), mean(trained, dict(zip(STEPS, weights, strict=True)))
    for name in (name for name in expected if not is_statistic(name)):
        torch.testing.assert_close(tensors[name], expected[name], rtol=1e-4, atol=1e-6)
    assert not any(torch.allclose(tensors[name], expected[name]) for name in expected if is_statistic(name))
    recipe = Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    written = load_file(write(recipe, tmp_path / "run", tmp_path / "out") / "model.safetensors")
    problem.merger.apply(array_coefficients(recipe.coefficients, problem.space.groups, problem.space.rows))
    for name, tensor in problem.live.model.state_dict().items():
        torch.testing.assert_close(written[name], tensor)


def test_a_run_elsewhere_finds_its_checkpoints(trained, tmp_path, monkeypatch):
    (tmp_path / "there" / "runs").mkdir(parents=True)
    (tmp_path / "there" / "run").symlink_to(trained / "run")
    given = {"model": {"trajectory": "run/checkpoint-*"}, "fitness": None}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evomerge.runs.paths.started_in", lambda run: [tmp_path / "there"])
    found = from_its_start(given, tmp_path / "there" / "runs")["model"]["trajectory"]
    assert found == "there/run/checkpoint-*"
    assert len(find_checkpoints(found)) == 4


def places(path: Path, *names: str) -> str:
    for name in names:
        (path / name).mkdir()
    return f"{path}/checkpoint*"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"needs two checkpoints, and there is no such directory\. Write the pattern"),
        (("checkpoint-5",), r"needs two checkpoints, and there is .*checkpoint-5 alone"),
        (
            ("checkpoint-5", "checkpoint-last"),
            r"checkpoint-last has no step in its name\. Name those to take as a list",
        ),
        (("checkpoint-5", "checkpoint-05"), r"checkpoint-05 and checkpoint-5 are of the same step"),
        (
            tuple(f"checkpoint-{n}" for n in (100, 200, 400, 500)),
            r"checkpoint-200 and checkpoint-400 are 200 steps apart, and others 100, so one is missing.*"
            r"as a list, in their order: \[.*/checkpoint-100,.*/checkpoint-200,.*/checkpoint-400,\.\.\.\]\.",
        ),
    ],
)
def test_patterns_that_are_refused(names, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        find_checkpoints(places(tmp_path, *names))


def test_what_is_no_pattern_and_what_cannot_be_read(trained, tmp_path, capsys):
    with pytest.raises(ConfigError, match="there is no name in it"):
        find_checkpoints(".")
    with pytest.raises(SystemExit):
        main(["merge", f"{trained}/run/checkpoint-*", str(tmp_path / "out"), "--weights", "{ema: "])
    assert "{ema:  cannot be read: write brackets" in capsys.readouterr().err


def test_a_last_checkpoint_may_come_early(tmp_path):
    pattern = places(tmp_path, *(f"checkpoint-{n}" for n in (1000, 500, 1234)))
    assert [Path(one).name for one in find_checkpoints(pattern)] == [
        "checkpoint-500",
        "checkpoint-1000",
        "checkpoint-1234",
    ]


def test_settings_that_do_not_fit_are_refused(trained, tmp_path):
    given = plain(settings(trained))
    problem = build_problem(given, Reporter())
    for start, message in [
        ({"ema": {"decoy": 1}}, r"Unknown setting of ema 'decoy': did you mean 'decay'"),
        ({"ema": {"decay": "fast"}}, r"ema\.decay=fast is no float"),
        ({"emma": {}}, r"start: Unknown name 'emma': did you mean 'ema'"),
        ({"ema": {}, "swa": {}}, r"write one name with its settings"),
        ({"metagpt": {"decay": 1}}, r"start=metagpt has no settings: leave out decay"),
    ]:
        with pytest.raises(ConfigError, match=message):
            find_start({**given, "start": start}, problem, Reporter())
    given["model"]["trajectory"] = None
    with pytest.raises(ConfigError, match=r"start=swa weighs the checkpoints of one training run: .*trajectory="):
        find_start({**given, "start": "swa"}, problem, Reporter())
    for model, message in [
        ({"trajectory": "a*", "experts": ["b"]}, r"and so does model\.experts=\['b'\]: leave one of them out"),
        ({"trajectory": 3}, r"model\.trajectory is 3; write a pattern"),
    ]:
        with pytest.raises(ConfigError, match=message):
            find_sources({**given["model"], **model}, given["fitness"]["tasks"])
    half = shutil.copytree(trained / "run", tmp_path / "run")
    given["model"]["trajectory"] = f"{half}/checkpoint-*"
    (half / "checkpoint-15" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="checkpoint-15"):
        build_problem(given, Reporter())
    shutil.rmtree(half / "checkpoint-15")
    other = ResNetConfig(**{**CONFIG.to_dict(), "embedding_size": 4})
    pico(ResNetForImageClassification, other).save_pretrained(half / "checkpoint-15")
    with pytest.raises(CheckpointError, match="checkpoint-15"):
        build_problem(given, Reporter())


def test_checkpoints_may_be_adapters_of_a_base(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    for seed, step in enumerate((5, 10)):
        save_adapter(tmp_path / "run" / f"checkpoint-{step}", llama(), seed)
    pattern, out = f"{tmp_path}/run/checkpoint-*", str(tmp_path / "out")
    with pytest.raises(ConfigError, match="is an adapter, and a trajectory of adapters needs the model"):
        base_of(find_checkpoints(pattern), None)
    main(["merge", pattern, out, "--weights=swa", f"--base={tmp_path}/base"])
    merged = load_file(tmp_path / "out" / "model.safetensors")
    folded = [folded_by_peft(tmp_path / "base", tmp_path / "run" / f"checkpoint-{step}") for step in (5, 10)]
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (folded[0][name] + folded[1][name]) / 2)
