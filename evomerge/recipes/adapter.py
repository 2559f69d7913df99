"""A linear merge of adapters as one PEFT adapter, which `PeftModel.from_pretrained` loads on top of the base.

In: a recipe. Out: a directory with adapter_config.json and adapter_model.safetensors. A weighted sum of adapters is
exact, of all their ranks together: the merge that was scored, but for rounding, with the weights of each group in its
rows. Any other merge, or a lower rank, is the nearest adapter of the rank that was asked for, and how far it is from
the merge is said. What cannot be one is refused, before anything is written, with what to write instead.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from evomerge.common.directories import whole_directory
from evomerge.common.errors import ConfigError
from evomerge.common.files import write_atomically
from evomerge.common.progress import Progress
from evomerge.models.adapters import FRONT
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import LiveModel, load_skeleton
from evomerge.models.vocabulary import UNION
from evomerge.models.weight_files import ADAPTER
from evomerge.recipes.combined import Combined, combined
from evomerge.recipes.nearest import nearest
from evomerge.recipes.origins import find_origins, open_origin
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.sums import Share, expert_reasons, recipe_reasons, row_weights, weight_shares

WHOLE = "Leave --adapter out: `evomerge merge` then writes a whole model."
NEAREST = f"Write --rank N for the nearest adapter of this rank, with its distance. {WHOLE}"
TASKS = {"AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM"}
"""What PEFT calls the tasks of classes."""


@dataclass(frozen=True)
class Written:
    """What became of a merge of adapters.

    Attributes:
        path: the directory.
        rank: the largest of a module.
        error: the Frobenius norm of what a lower rank leaves out, as a share of that of the whole merge; 0 if exact.
        worst: the largest such share of a parameter, and which.
    """

    path: Path
    rank: int
    error: float
    worst: tuple[float, str]

    @property
    def distance(self) -> str:
        """What a lower rank leaves out, in words; empty if that is nothing."""
        if not self.error:
            return ""
        share, name = self.worst
        return (
            f"rank {self.rank} leaves out {self.error:.2%} of the merge (relative Frobenius norm), and at most "
            f"{share:.2%} of a parameter ({name})"
        )


def write_adapter(
    recipe: Recipe,
    beside: Path,
    out: Path,
    *,
    base: Path | None = None,
    experts: Mapping[str, Path] | None = None,
    rank: int | None = None,
    reporter: Progress,
) -> Written:
    """Write the merge of a recipe as one adapter.

    Args:
        recipe: what to build.
        beside: the directory of the recipe, where its sources are if they are not where it says.
        out: the directory to make; missing or empty.
        base: where the base is, if not where the recipe says.
        experts: where experts are, by name, if not where the recipe says.
        rank: of each module, at most; None for an exact merge, which only a weighted sum of factors has.
        reporter: is told what goes on.

    Raises:
        ConfigError: the merge is no sum of factors, `out` is not free, or a source is not found.
        CheckpointError: a source is damaged or has other weights than the recipe says.
    """
    _check_recipe(recipe)
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank} is no rank: write a number of 1 or more.")
    reason = next(recipe_reasons(recipe), None)
    _check_exact(reason, rank)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already, and nothing is overwritten: name a new directory.")
    places = find_origins(recipe, beside, base, experts or {})
    live = load_skeleton(places[""], recipe.auto_class)
    with reporter.bars(), reporter.working("comparing the sources with the hashes of the recipe"):
        ours = open_origin("", recipe.base, places[""], live, reporter)
        fit = {"vocabulary": recipe.vocabulary, "base": ours}
        found = {
            name: open_origin(name, one, places[name], live, reporter, **fit) for name, one in recipe.experts.items()
        }
    shares = [] if reason else [*weight_shares(recipe, live, ours, found)]
    reason = reason or next(expert_reasons(found, shares, live), None)
    _check_exact(reason, rank)
    if rank is not None and reason:
        with reporter.bars(), reporter.working(f"looking for the nearest adapter of rank {rank}"):
            merged = nearest(recipe, live, ours, found, rank, reporter.steps)
    else:
        with reporter.working("combining the adapters"):
            merged = _combined(shares, live, found, rank)
    _check_merged(merged, live)
    modules, written = _modules(merged, found), _written(out, merged)
    with whole_directory(out) as directory:
        tensors = dict(_tensors(merged, modules, live))
        save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
        write_atomically(directory / ADAPTER, json.dumps(_config(recipe, merged, modules, live), indent=2) + "\n")
        write_atomically(directory / "recipe.yaml", recipe.to_yaml())
        write_atomically(directory / "README.md", _card(recipe, written))
    return written


def _combined(
    shares: Sequence[Share], live: LiveModel, found: Mapping[str, Checkpoint], rank: int | None
) -> dict[str, Combined]:
    """Return the weighted sum of the factors of each parameter."""
    return {
        name: combined([found[expert].factors[name] for expert in rows], [*rows.values()], rank)
        for name, rows in row_weights(shares, live).items()
    }


def _check_merged(merged: Collection[str], live: LiveModel) -> None:
    """Refuse a merge that is the base, and one that changes tensors which the base ties to others.

    Raises:
        ConfigError: it is one.
    """
    if not merged:
        raise ConfigError(f"All weights of this recipe are 0: it is the base, and no adapter. {WHOLE}")
    tied = {*live.tied, *live.tied.values()}
    if both := [name for name in merged if name in tied]:
        raise ConfigError(
            f"--adapter: the base ties {both[0]} to another tensor, and the merge that was scored changed both, which "
            f"an adapter does not. {WHOLE}"
        )


def _written(out: Path, merged: Mapping[str, Combined]) -> Written:
    """Return how far an adapter is from the merge."""
    lost = {name: math.sqrt(one.lost / one.size) if one.size else 0.0 for name, one in merged.items()}
    size, left = sum(one.size for one in merged.values()), sum(one.lost for one in merged.values())
    worst = max(lost, key=lambda name: lost[name])
    error = math.sqrt(left / size) if size else 0.0
    return Written(out, max(one.rank for one in merged.values()), error, (lost[worst], worst))


def _check_recipe(recipe: Recipe) -> None:
    """Refuse a merge that is more than changes of weights."""
    if told := [
        name
        for name, there in (
            ("vocabulary=union", recipe.vocabulary == UNION),
            (f"part={recipe.part}", recipe.part),
            (f"template={recipe.template}", recipe.template),
            (f"buffers={recipe.buffers.get('name')}", recipe.buffers),
        )
        if there
    ]:
        raise ConfigError(
            f"--adapter: this recipe has {' and '.join(told)}, which needs more than changes of the base's weights. "
            f"{WHOLE}"
        )


def _check_exact(reason: str | None, rank: int | None) -> None:
    """Refuse a merge that is no weighted sum of factors where no rank was asked for."""
    if reason and rank is None:
        raise ConfigError(f"--adapter: {reason}. {NEAREST}")


def _modules(merged: Mapping[str, Combined], found: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Return what the adapters call the modules of parameters; the live model's names where they do not agree."""
    names = {name: {one.factors[name].module for one in found.values() if name in one.factors} for name in merged}
    if all(len(those) == 1 for those in names.values()):
        return {name: next(iter(those)) for name, those in names.items()}
    return {name: name.rpartition(".")[0] for name in merged}


def _tensors(
    merged: Mapping[str, Combined], modules: Mapping[str, str], live: LiveModel
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an adapter as PEFT names and lays them out."""
    for name, one in merged.items():
        front, left, right = FRONT + modules[name], one.left, one.right
        if isinstance(live.model.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            yield f"{front}.lora_embedding_A", left.T.contiguous()
            yield f"{front}.lora_embedding_B", right.T.contiguous()
            continue
        if name in live.transposed:
            left, right = right.T, left.T
        kernel = live.parameters[name][2:]  # of a convolution
        yield (
            f"{front}.lora_A.weight",
            right.reshape(len(right), *live.parameters[name][1:]).contiguous() if kernel else right.contiguous(),
        )
        yield f"{front}.lora_B.weight", left.reshape(*left.shape, *(1 for _ in kernel)).contiguous()


def _config(
    recipe: Recipe, merged: Mapping[str, Combined], modules: Mapping[str, str], live: LiveModel
) -> dict[str, Any]:
    """Return the settings with which PEFT multiplies the factors by 1."""
    ranks = {modules[name]: one.rank for name, one in merged.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    other = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": TASKS.get(recipe.auto_class),
        "base_model_name_or_path": recipe.base.hub.partition("@")[0] if recipe.base.hub else recipe.base.path,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": any(name in live.transposed for name in merged),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _card(recipe: Recipe, written: Written) -> str:
    """Return a card that says what was merged."""
    base = recipe.base.hub.partition("@")[0] if recipe.base.hub else Path(recipe.base.path).name
    rows: Sequence[str] = [
        f"- {name}: {Path(one.path).name}, {one.sha256[:12]}" for name, one in recipe.experts.items()
    ]
    far = f"\nIt is the nearest adapter: {written.distance}.\n" if written.distance else ""
    return (
        f"---\nlibrary_name: peft\nbase_model: {base}\ntags: [merge, evomerge, lora]\n---\n\n"
        f"# Merge of {len(rows)} experts\n\nOne adapter for {base}, merged from these by evomerge {recipe.version} "
        "(`recipe.yaml` has every coefficient):\n\n" + "\n".join(rows) + f"\n{far}"
    )
