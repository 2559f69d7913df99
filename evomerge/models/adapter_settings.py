"""What the adapter_config.json of a PEFT adapter says, as far as it changes weights; the rest is refused by name.

In: an adapter directory. Out: `AdapterSettings`. An adapter is merged if what it does is a sum on the weights of its
base: LoRA in all forms that only differ by rank, scale and layout, DoRA (Liu et al. 2024, arXiv 2402.09353), and
tensors that were trained as a whole. What multiplies activations, adds inputs, or began by changing the base is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.common.errors import CheckpointError
from evomerge.models.weight_files import ADAPTER, read_json

FOLD = (
    "Fold it into its base with PEFT, which knows it: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
    ".save_pretrained(DIR), and name DIR as the expert."
)
"""What is left to do with what is no sum of factors."""
INPUTS = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"),
    "CARTRIDGE",
}
"""Kinds of adapters that add inputs, and change no weight."""
ALIKE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Beginnings that leave the weights of the base as they are."""
HASHED = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_dora")
"""What the weights of an adapter mean depends on these and on `trainable_token_indices`."""
PLAIN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_dropout", "bias", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "velora_config", "lora_bias", "target_parameters", "runtime_config", "ensure_weight_tying"),
    *("trainable_token_indices", "qalora_group_size", "megatron_core", "ephemeral_gpu_offload"),
}
"""What says how an adapter was made, or is seen in its tensors."""
REFUSED = {
    "use_qalora": "pools the inputs of its layers",
    "use_bdlora": "has factors of blocks",
    "alora_invocation_tokens": "works from certain tokens of a text on, and not before",
    "arrow_config": "chooses among adapters for each token",
    "kasa_config": "has singular values beside its factors",
    "monteclora_config": "draws its factors at random",
    "layer_replication": "has more layers than its base",
    "megatron_config": "is of Megatron's parallel layers",
}
"""Settings under which an adapter is no sum of factors, and why."""


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter says of itself.

    Attributes:
        named_base: the base that it was trained on, by the name that it had there; None where it does not say.
        dora: whether rows (columns of transposed matrices) have a length of their own.
        transposed: whether its matrices are laid out as those of GPT-2, inputs first.
        ties: whether it was trained so that what the base ties stays tied.
        tokens: the rows that were trained alone: by module, or of the input embedding under no name.
        config: the file.
    """

    named_base: str | None
    dora: bool
    transposed: bool
    ties: bool
    tokens: Mapping[str, list[int]]
    config: Mapping[str, Any]

    def rank(self, module: str) -> int:
        """Return the rank r of a module's factors."""
        return int(_matching(self.config.get("rank_pattern") or {}, module, self.config.get("r", 8)))

    def scale(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied by: α/r, or α/√r (Kalajdzievski 2023)."""
        alpha = _matching(self.config.get("alpha_pattern") or {}, module, self.config.get("lora_alpha", 8))
        rank = self.rank(module)
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    @property
    def meaning(self) -> list[Any]:
        """What the weights mean, as plain data for a hash."""
        return [*(self.config.get(name) for name in HASHED), self.tokens]


def read_settings(path: Path) -> AdapterSettings:
    """Read the settings of an adapter.

    Args:
        path: its directory.

    Raises:
        CheckpointError: it is no sum on weights, it began by changing its base, or it has a setting that is not known.
    """
    config = read_json(path / ADAPTER)
    _check_kind(path, str(config.get("peft_type")))
    for name, why in REFUSED.items():
        if config.get(name):
            raise CheckpointError(f"{path}: this adapter {why} ({name}), so it is no sum on the base's weights. {FOLD}")
    if unknown := sorted(name for name in config.keys() - PLAIN - {*HASHED, *REFUSED} if config[name]):
        raise CheckpointError(
            f"{path}: {ADAPTER} has the setting {unknown[0]}={config[unknown[0]]!r:.60}, which evomerge does not know, "
            f"and which may change what the weights mean. {FOLD}"
        )
    begun = config.get("init_lora_weights")
    if begun not in ALIKE:
        raise CheckpointError(
            f"{path}: this adapter began by changing the weights of its base (init_lora_weights={begun}), so its "
            "factors are no difference to them. Save it as an ordinary one, by save_pretrained(DIR, "
            "path_initial_model_for_weight_conversion=...), as PEFT's guide to LoRA says for PiSSA, OLoRA and CorDA; "
            f"or name the changed base as the base. Or else: {FOLD[0].lower()}{FOLD[1:]}"
        )
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise CheckpointError(f"{path}: {ADAPTER} has a rank that is none (r, rank_pattern): {ranks}. Save it anew.")
    tokens = config.get("trainable_token_indices") or {}
    return AdapterSettings(
        named_base=config.get("base_model_name_or_path") or None,
        dora=bool(config.get("use_dora")),
        transposed=bool(config.get("fan_in_fan_out")),
        ties=bool(config.get("ensure_weight_tying")),
        tokens={str(name): list(rows) for name, rows in tokens.items()}
        if isinstance(tokens, Mapping)
        else {"": tokens},
        config=config,
    )


def _check_kind(path: Path, kind: str) -> None:
    if kind == "LORA":
        return
    if kind in INPUTS:
        raise CheckpointError(
            f"{path} is an adapter of the kind {kind}, which adds inputs and changes no weight, so it has no task "
            "vector. Train the expert by LoRA, or in full."
        )
    raise CheckpointError(
        f"{path} is an adapter of the kind {kind}, whose change is no product of two factors (LORA is). {FOLD}"
    )


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that a module's name ends with, as PEFT matches them."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
