"""The merge of upscalers: the reader of weights, the pictures, and the whole way on a small drawn network."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import merge_upscalers as command
from upscalers import pictures, weights
from upscalers.network import MARGIN, UpCUNet, UpCUNetConfig

import evomerge as em


def written(network: UpCUNet, path: Path) -> Path:
    """Write a network as ncnn does: matrices in float16 with outputs first, biases in float32."""
    parts: list[bytes] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
            half = weight.detach().numpy().astype(np.float16).tobytes()
            parts += [weights.HALF.to_bytes(4, "little"), half, b"\0" * (-len(half) % 4)]
            parts += [layer.bias.detach().numpy().tobytes()]
    path.write_bytes(b"".join(parts))
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A base and two experts near it, in the files that the script reads."""
    torch.manual_seed(0)
    network = UpCUNet(UpCUNetConfig())
    written(network, tmp_path / command.MODELS["base"])
    for name in command.QUALITIES:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        written(network, tmp_path / command.MODELS[name])
    return tmp_path


def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    network = UpCUNet(UpCUNetConfig())
    file = written(network, tmp_path / "a.bin")
    for name, parameter in weights.read(file).named_parameters():
        torch.testing.assert_close(parameter, network.get_parameter(name), rtol=1e-3, atol=1e-4)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ValueError, match="bytes, and the network"):
        weights.read(file)
    file.write_bytes(b"\1\2\3\4" + file.read_bytes()[4:])
    with pytest.raises(ValueError, match="neither float16 nor float32"):
        weights.read(file)


def test_a_picture_comes_out_twice_as_large() -> None:
    with torch.inference_mode():
        out = UpCUNet(UpCUNetConfig())(torch.zeros(1, 3, 8 + 2 * MARGIN, 12 + 2 * MARGIN))
    assert out.shape == (1, 3, 16, 24)


def test_a_better_copy_has_more_decibels_and_no_picture_is_in_two_splits() -> None:
    emoji = np.random.default_rng(0).integers(0, 255, (10, 16, 16, 3), np.uint8)
    tasks = pictures.tasks_of(emoji, {"light": 95, "heavy": 5})
    splits = [{item.text.split("@")[0] for task in tasks.values() for item in task[split]} for split in pictures.SPLITS]
    assert sum(map(len, splits)) == len(set().union(*splits)) == len(emoji)
    score = pictures.fitness_of(emoji)
    nearest = nn.Sequential(nn.ReplicationPad2d(-MARGIN), nn.Upsample(scale_factor=2))
    light, heavy = (np.mean(score(nearest, task["report"])) for task in tasks.values())
    assert light > heavy > 0


def test_the_merge_that_transformers_loads_scores_what_the_search_says(directory: Path, monkeypatch, capsys) -> None:
    emoji = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), np.uint8)
    monkeypatch.setattr(pictures, "emoji", lambda cache, count: emoji)
    command.main(["--weights", str(directory), "--out", str(directory / "out"), "--budget", "3", "--space", "model"])
    out = capsys.readouterr().out
    merged = AutoModel.from_pretrained(directory / "out" / "merged").eval()
    items = pictures.tasks_of(emoji, command.QUALITIES)["heavy"]["report"]
    score = np.mean(pictures.fitness_of(emoji)(merged, items))
    (merged_row,) = [line for line in out.splitlines() if line.startswith("| merged |")]
    assert f"| {score:.2f} |" in merged_row
    row = next(line for line in out.splitlines() if line.startswith("winner "))
    assert float(row.split()[-1]) == pytest.approx(score, abs=1e-3)
    assert "merged - heavy, on both tasks: " in out
    assert em.load(directory / "out" / "run").recipe.experts.keys() == command.QUALITIES.keys()
