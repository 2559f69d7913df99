"""Families of models on disk, recipes over them, and what the live model makes of these: the measure of exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from evomerge.cli.progress import Reporter
from evomerge.merging.merger import Merger
from evomerge.merging.method import Formed
from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.models.live import load_live, load_skeleton
from evomerge.models.matching import Layout
from evomerge.models.pretrained import rename_keys
from evomerge.recipes.catalog import make_chain, make_method
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.groups import make_groups
from evomerge.task_vectors.store import task_vectors
from evomerge.task_vectors.stores import EXPERT, FLOAT32
from evomerge.transforms.store import transformed

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear"},
    "ties": {"name": "ties", "normalize": False},
    "ties over groups": {"name": "ties", "over": "group"},
    "della": {"name": "della", "seed": 3},
    "dare_ties": {"name": "dare_ties", "seed": 3, "normalize": True},
    "ties_frozen": {"name": "linear"},
}
TRANSFORMS: dict[str, list[dict[str, Any]]] = {"ties_frozen": [{"name": "ties", "density": 0.3}]}
EXPERTS = ("red", "green", "blue")
CAUSAL = "AutoModelForCausalLM"
ADDED = ("recipe.yaml", "README.md", "merge.json")
"""What a merged directory has beside what the base has."""


def save_family(path: Path, model: Any, experts: int = 3, frozen: str = "embed", **saving: Any) -> dict[str, Path]:
    """Write `base` and experts tuned from it, but for the parameters with `frozen` in their names."""
    model.save_pretrained(path / "base", **saving)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for k, name in enumerate(EXPERTS[:experts]):
        generator = torch.Generator().manual_seed(k)
        for key, parameter in model.named_parameters():
            if frozen not in key:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(start[key].float() + 0.05 * noise)
        model.save_pretrained(path / name, **saving)
    for key, parameter in model.named_parameters():
        parameter.data.copy_(start[key])
    return {name: path / name for name in EXPERTS[:experts]}


def opened(paths: Mapping[str, Path], model: Any, vocabulary: str = "refuse") -> dict[str, Checkpoint]:
    """Checkpoints by name; the base, under no name, comes first."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found: dict[str, Checkpoint] = {}
    for name, path in paths.items():
        layout = Layout(
            prefix=model.base_model_prefix,
            tied=model.all_tied_weights_keys,
            rename=lambda keys: rename_keys(model, keys),
        )
        found[name] = open_checkpoint(path, shapes, layout, vocabulary=vocabulary, base=found.get(""))
    return found


def make_recipe(
    base: Path,
    experts: Mapping[str, Path],
    method: str = "linear",
    granularity: str = "tensor",
    auto_class: str = "AutoModel",
    seed: int = 0,
    **more: Any,
) -> Recipe:
    """A recipe with coefficients drawn at random, some of them 0."""
    live, found, fit = load_skeleton(base, auto_class), {}, more.get("vocabulary", "refuse")
    for name, path in {"": base, **experts}.items():
        found[name] = live.open(path, vocabulary=fit, base=found.get(""))
    shapes = live.parameters
    groups = make_groups(granularity, {name: s for name, s in shapes.items() if name not in found[""].missing})
    rng = np.random.default_rng(seed)
    ranges = (
        {"weight": (-0.5, 1.5)} if METHODS[method]["name"] == "linear" else {"weight": (0, 1.5), "density": (0.1, 1)}
    )

    def draw(low: float, high: float) -> float:
        return 0.0 if low <= 0 and rng.random() < 0.1 else float(rng.uniform(low, high))

    return Recipe(
        base=Source(str(base), found[""].sha256),
        experts={name: Source(str(path), found[name].sha256) for name, path in experts.items()},
        method=METHODS[method],
        transform=TRANSFORMS.get(method, []),
        granularity=granularity,
        coefficients={
            variable: {group.name: {name: draw(*limits) for name in experts} for group in groups}
            for variable, limits in ranges.items()
        },
        auto_class=auto_class,
        **more,
    )


def live_merge(recipe: Recipe, base: Path, experts: Mapping[str, Path], cache: Path) -> dict[str, Tensor]:
    """The parameters of the live model with the recipe in it, as a search builds and scores it."""
    live = load_live(base, recipe.auto_class, "cpu", needs_processor=False)
    model, ours = live.model, live.open(base)
    found = {name: live.open(experts[name], vocabulary=recipe.vocabulary, base=ours) for name in recipe.experts}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name not in ours.missing}
    method = make_method(recipe)
    whole = isinstance(method, Formed) and method.form.blends  # of models themselves, as a search keeps them
    vectors = task_vectors(ours, found, shapes, cache, store=EXPERT if whole else FLOAT32)
    vectors = transformed(vectors, make_chain(recipe, shapes), cache)
    groups = recipe.groups(shapes)
    Merger(model, vectors, groups, method).apply(
        {
            variable: np.array([[rows[group.name][name] for name in recipe.row_names] for group in groups])
            for variable, rows in recipe.coefficients.items()
        }
    )
    return {name: p.detach() for name, p in model.named_parameters() if name in shapes}


def loaded(out: Path, auto_class: str = "AutoModel") -> tuple[Any, set[str], set[str]]:
    """What transformers makes of a directory, and the keys that are missing or unexpected to it."""
    model, info = getattr(transformers, auto_class).from_pretrained(
        out, local_files_only=True, output_loading_info=True, dtype="auto"
    )
    assert not info["mismatched_keys"]
    return model, set(info["missing_keys"]), set(info["unexpected_keys"])


def same(model: Any, expected: Mapping[str, Tensor]) -> bool:
    found = dict(model.named_parameters())
    return all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def places(path: Path) -> dict[str, Path]:
    """The experts of `save_family`."""
    return {name: path / name for name in EXPERTS}


def write(recipe: Recipe, beside: Path, out: Path, **more: Any) -> Path:
    return write_model(recipe, beside, out, reporter=Reporter(), **more)


def tensors_of(path: Path) -> dict[str, Tensor]:
    return {key: tensor for file in path.glob("*.safetensors") for key, tensor in load_file(file).items()}


def names(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
