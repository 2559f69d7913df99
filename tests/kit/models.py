"""Pico models and model directories, for the tests of weights, checkpoints and task vectors."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, LlamaConfig, MixtralConfig, T5Config

from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.models.conversions import find_conversions
from evomerge.models.matching import Layout
from evomerge.models.pretrained import rename_keys
from evomerge.task_vectors.store import check_family, task_vectors

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
BERT = BertConfig(**TINY, max_position_embeddings=16)
LLAMA = LlamaConfig(**TINY, num_key_value_heads=2)
LLAMA_TIED = LlamaConfig(**TINY, num_key_value_heads=2, tie_word_embeddings=True)
GPT2 = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=1, eos_token_id=2)
T5 = T5Config(num_layers=2, d_model=32, d_kv=16, d_ff=64, num_heads=2, vocab_size=50)
MIXTRAL = MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=2)
SHAPES = {"embed.weight": (40, 8), "layers.0.weight": (8, 8), "layers.0.bias": (8,), "norm.weight": (8,)}


def pico(cls, config, seed=0, **kwargs):
    """A small model whose every parameter is drawn from its own generator."""
    model, generator = cls(config, **kwargs), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def opened(path, model, **kwargs) -> Checkpoint:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layout = Layout(
        prefix=model.base_model_prefix,
        tied=model.all_tied_weights_keys,
        buffers=[name for name, _ in model.named_buffers()],
        rename=partial(rename_keys, model),
        convert=partial(find_conversions, model),
    )
    return open_checkpoint(path, shapes, layout, **kwargs)


def saved(path: Path, tensors: dict, config: dict | None = None) -> Path:
    """A model directory written by hand."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def rewritten(path: Path, change) -> None:
    """Passes the tensors of a single safetensors file through `change`."""
    tensors = {key: tensor.clone() for key, tensor in load_file(path / "model.safetensors").items()}
    save_file(change(tensors), path / "model.safetensors")


def to_bin(path: Path, old: bool = False) -> None:
    """Turns safetensors, single or sharded, into the `.bin` files of earlier years."""
    for file in path.glob("*.safetensors"):
        name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(load_file(file), path / name, _use_new_zipfile_serialization=not old)
        file.unlink()
    index = path / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (path / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def drawn(seed: int, scale: float = 1.0, shapes=SHAPES) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tuned(tensors: dict, seed: int) -> dict:
    return {
        name: tensor + delta for (name, tensor), delta in zip(tensors.items(), drawn(seed, 0.1).values(), strict=True)
    }


class Family:
    """A base with experts on disk, opened anew by each call."""

    def __init__(self, path: Path, **experts: dict):
        self.path, self.cache, self.base = path, path / "cache", drawn(0)
        saved(path / "base", self.base)
        self.experts = {name: tuned(self.base, 1) | change for name, change in experts.items()}
        for name, tensors in self.experts.items():
            saved(path / name, {key: tensor for key, tensor in tensors.items() if tensor is not None})

    def open(self):
        return [open_checkpoint(self.path / name, SHAPES, cache=self.cache) for name in ("base", *self.experts)]

    def vectors(self, **kwargs):
        base, *experts = self.open()
        return task_vectors(base, dict(zip(self.experts, experts, strict=True)), SHAPES, self.cache, **kwargs)

    def check(self, allowed=()):
        base, *experts = self.open()
        return check_family(base, dict(zip(self.experts, experts, strict=True)), SHAPES, allowed)

    def files(self):
        return sorted(self.cache.glob("*.safetensors"))
