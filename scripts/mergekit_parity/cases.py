"""The cases: families of models, and on each a recipe with coefficients that are all different.

In: a case. Out: a directory with base, experts, `recipe.yaml` and `mergekit.yaml`. Pico models have sizes that are no
multiples of what processors work on at a time, and five experts, from which on the order of sums shows.

Densities of `ties` and `breadcrumbs` are such that no two elements of one task vector are equal where it is trimmed:
there, mergekit keeps any of them (its sort is not stable, and so depends on the processor), and evomerge the first.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from evomerge.common.files import write_atomically
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import load_skeleton
from evomerge.recipes.mergekit.write import to_mergekit
from evomerge.recipes.recipe import Coefficients, Recipe, Source
from evomerge.space.groups import make_groups

EXPERTS = ("a", "b", "c", "d", "e")
LLAMA: dict[str, Any] = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "vocab_size": 51, "max_position_embeddings": 32},
}
BERT: dict[str, Any] = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"vocab_size": 51, "max_position_embeddings": 13},
}
GPT2: dict[str, Any] = {"n_embd": 24, "n_layer": 3, "n_head": 2, "vocab_size": 51, "n_positions": 13}
TRIES = 500
"""Densities that are drawn at most until one cuts between unequal elements."""
SPHERES = ("karcher", "multislerp")
"""Methods that evomerge computes in another way, so that last bits differ."""
WHOLE: dict[str, dict[str, Any]] = {"sce": {"name": "sce", "density": 0.5}, "model_stock": {"name": "model_stock"}}
"""Methods that evomerge makes of a transform with weights of 1, here too with other last bits."""
SUMS = ("ties", "dare", "della", "breadcrumbs")
"""Methods with densities; those of random masks are compared at a density of 1, where nothing is dropped."""
GAMMA = 0.01
"""The share of the largest elements that breadcrumbs leaves out, if not said otherwise."""
TAKES = {"slerp": 1, "nuslerp": 2}
SUITE = Path(__file__).parents[2] / "suites" / "text"


@dataclass(frozen=True)
class Family:
    """A base and its experts.

    Attributes:
        auto_class: the transformers class to load them with.
        config: makes the config of a pico model; None for the models of the suite `text`.
        dtype: in which they are saved.
        shard: the largest size of a weight file.
        raw: whether mergekit has to take the weight files alone.
        twice: whether the files hold the tied head as well.
        kin: whether experts have most of their change in common.
        words: the tokens of models by row, where these have tokenizers; `WORDS` for one that is not named.
    """

    auto_class: str
    config: Callable[[], Any] | None
    dtype: torch.dtype = torch.float32
    shard: str = "1GB"
    raw: bool = False
    twice: bool = False
    kin: bool = False
    words: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Case:
    """A merge that both must do alike."""

    family: str
    granularity: str
    method: str = "linear"
    normalize: bool = False
    elect: str | None = None

    @property
    def name(self) -> str:
        """What the output calls it."""
        how = f"{' normalize' * self.normalize}{' elected' * bool(self.elect)}"
        return f"{self.family} {self.granularity} {self.method}{how}"

    @property
    def loose(self) -> bool:
        """Whether elements may differ by a little of the largest, in place of a unit in the last place."""
        return self.method in (*SPHERES, *WHOLE) and FAMILIES[self.family].dtype == torch.float32

    @property
    def settings(self) -> dict[str, Any]:
        """The method as a recipe has it."""
        if self.method in WHOLE:
            return {"name": "linear"}
        divides = {"normalize": self.normalize} if self.method in SUMS else {}
        return {"name": self.method, **divides, **({"elect": self.elect} if self.elect else {})}


WORDS = tuple(f"w{i}" for i in range(LLAMA["vocab_size"]))
TOKENS = {"a": (*WORDS, "both", "only"), "b": (*WORDS, "both"), "c": WORDS[::-1]}
CAUSAL, HEADLESS = "AutoModelForCausalLM", "AutoModel"
FAMILIES = {
    "llama": Family(CAUSAL, lambda: LlamaConfig(**LLAMA)),
    "llama-tied": Family(CAUSAL, lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "llama-tied-twice": Family(CAUSAL, lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True), twice=True),
    "llama-bf16-sharded": Family(CAUSAL, lambda: LlamaConfig(**LLAMA), torch.bfloat16, "12KB"),
    "llama-tied-bf16": Family(CAUSAL, lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True), torch.bfloat16),
    "llama-kin": Family(CAUSAL, lambda: LlamaConfig(**LLAMA), kin=True),
    "llama-tokens": Family(CAUSAL, lambda: LlamaConfig(**LLAMA), words=TOKENS),
    "gpt2": Family(CAUSAL, lambda: GPT2Config(**GPT2)),
    "bert": Family(HEADLESS, lambda: BertConfig(**BERT), raw=True),
    "minilm": Family(HEADLESS, None, raw=True),
}
SMALL = (
    Case("llama", "module"),
    Case("llama-tied-bf16", "tensor", "ties", normalize=True),
    Case("llama-bf16-sharded", "blocks:2"),
    Case("bert", "layer"),
)
ALL = (
    *SMALL,
    Case("llama", "model"),
    Case("llama", "tensor"),
    Case("llama", "layer", "ties"),
    Case("llama-tied", "layer"),
    Case("llama-tied", "line"),
    Case("llama-tied", "tensor", "ties"),
    Case("llama-tied-twice", "layer"),
    Case("llama-bf16-sharded", "tensor"),
    Case("llama-tied-bf16", "module"),
    Case("gpt2", "tensor"),
    Case("gpt2", "blocks:3", "ties", normalize=True),
    Case("bert", "tensor", "ties"),
    Case("llama", "tensor", "breadcrumbs"),
    Case("llama", "tensor", "breadcrumbs", normalize=True),
    Case("llama-tied-bf16", "layer", "breadcrumbs", normalize=True, elect="sum"),
    Case("llama-bf16-sharded", "layer", "breadcrumbs", elect="sum"),
    Case("llama", "layer", "dare", normalize=True),
    Case("llama", "layer", "della", elect="sum"),
    Case("llama", "tensor", "slerp"),
    Case("llama-bf16-sharded", "layer", "slerp"),
    Case("llama", "tensor", "nuslerp"),
    Case("llama-bf16-sharded", "layer", "nuslerp"),
    Case("llama", "tensor", "multislerp"),
    Case("llama-bf16-sharded", "layer", "multislerp"),
    Case("llama", "tensor", "karcher"),
    Case("llama-bf16-sharded", "layer", "karcher"),
    Case("llama", "tensor", "sce"),
    Case("llama-tied-bf16", "tensor", "sce"),
    Case("llama-kin", "tensor", "model_stock"),
    Case("minilm", "layer"),
    Case("minilm", "tensor", "ties"),
)


def is_there(case: Case) -> bool:
    """Whether the models of a case can be had: those of the suite must have been built."""
    return FAMILIES[case.family].config is not None or (SUITE / "suite.json").is_file()


def write_case(case: Case, directory: Path) -> dict[str, str]:
    """Write models, recipe and YAML; the paths in both are relative to the directory.

    Returns:
        alias -> key of the tensors that are tied.
    """
    family, seed = FAMILIES[case.family], zlib.crc32(case.name.encode())
    names = list(EXPERTS)
    if family.config is not None:
        write_models(family, directory, seed)
    else:
        names = sorted(path.name for path in (SUITE / "experts").iterdir())
        (directory / "base").symlink_to(SUITE / "base")
        for name in names:
            (directory / name).symlink_to(SUITE / "experts" / name)
    names = names[: TAKES.get(case.method)]
    live = load_skeleton(directory / "base", family.auto_class)

    def opened(name: str) -> Checkpoint:
        return live.open(directory / name)

    base, experts = opened("base"), {name: opened(name) for name in names}
    parameters = {name: shape for name, shape in live.parameters.items() if name not in base.missing}
    recipe = Recipe(
        base=Source("base", base.sha256),
        experts={name: Source(name, expert.sha256) for name, expert in experts.items()},
        method=case.settings,
        transform=[WHOLE[case.method]] if case.method in WHOLE else [],
        granularity=case.granularity,
        coefficients=_coefficients(case, parameters, base, experts, seed),
        auto_class=family.auto_class,
    )
    write_atomically(directory / "recipe.yaml", recipe.to_yaml())
    dtype = str(base.dtype(next(iter(parameters))))
    text = to_mergekit(recipe, base.keys, parameters, dtype, base.extra, live.tied)
    write_atomically(directory / "mergekit.yaml", text)
    return live.tied


def _coefficients(
    case: Case,
    parameters: Mapping[str, tuple[int, ...]],
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    seed: int,
) -> Coefficients:
    rng, groups = np.random.default_rng(seed), make_groups(case.granularity, parameters)
    weights = {group.name: {expert: float(rng.uniform(-0.5, 1.5)) for expert in experts} for group in groups}
    if case.method in ("karcher", *WHOLE):  # mergekit weighs all alike
        return {"weight": {group: dict.fromkeys(row, 1.0) for group, row in weights.items()}}
    if case.method not in SUMS:
        return {"weight": weights}
    if case.method in ("dare", "della"):
        return {"weight": weights, "density": {group: dict.fromkeys(row, 1.0) for group, row in weights.items()}}
    densities: dict[str, dict[str, float]] = {group.name: {} for group in groups}
    for name, expert in experts.items():
        for group in groups:
            ranked = [_ranked(base.tensor(span.parameter), expert.tensor(span.parameter)) for span in group.spans]
            densities[group.name][name] = _density(rng, ranked, GAMMA if case.method == "breadcrumbs" else 0.0)
    return {"weight": weights, "density": densities}


def _ranked(base: Tensor, expert: Tensor) -> Tensor:
    """The magnitudes of a task vector, largest first."""
    return (expert.float() - base.float()).abs().reshape(-1).sort(descending=True).values


def _density(rng: np.random.Generator, ranked: Sequence[Tensor], out: float) -> float:
    """A density that cuts between two unequal elements in every one of these task vectors, or 1."""
    for density in rng.uniform(0.05, 1.0, TRIES).tolist():
        cuts = []
        for values in ranked:
            keep, top = (math.floor(share * len(values) + 1e-9) for share in (density, out))
            top = min(top, len(values) - keep)
            cuts += [(values, top), (values, top + keep)]
        if all(cut in (0, len(values)) or values[cut - 1] > values[cut] for values, cut in cuts):
            return density
    return 1.0


def write_models(family: Family, directory: Path, seed: int) -> None:
    """Write a base whose tensors, norms included, are all drawn, and experts that differ from it everywhere."""
    assert family.config is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, family.auto_class).from_config(family.config())
    start = {name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.named_parameters()}
    for name in ("base", *EXPERTS):
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                change = (
                    0.02 * torch.randn(parameter.shape, generator=generator) + family.kin * 0.02 * start[key].sign()
                )
                parameter.copy_(start[key] if name == "base" else start[key] + change)
        model.to(family.dtype).save_pretrained(directory / name, max_shard_size=family.shard)
        model.float()
        if family.words:
            _give_tokens(directory / name, family.words.get(name, WORDS), generator)
        if family.twice:
            file = directory / name / "model.safetensors"
            tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
            save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)


def _give_tokens(directory: Path, words: Sequence[str], generator: torch.Generator) -> None:
    """Give a model a tokenizer; the tokens beyond its rows are added ones, and get rows."""
    count, unknown = len(WORDS), WORDS[0]
    known = Tokenizer(WordLevel({word: row for row, word in enumerate(words[:count])}, unk_token=unknown))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, unk_token=unknown)
    tokenizer.add_tokens(list(words[count:]))
    tokenizer.save_pretrained(directory)
    tensors = {key: tensor.clone() for key, tensor in load_file(directory / "model.safetensors").items()}
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        more = 0.05 * torch.randn((len(words) - count, tensors[key].shape[1]), generator=generator)
        tensors[key] = torch.cat([tensors[key], more])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    write_atomically(directory / "config.json", json.dumps({**config, "vocab_size": len(words)}))
