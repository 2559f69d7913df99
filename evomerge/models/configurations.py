"""How the configurations of two model directories differ: what changes the forward pass, tokens, how text is generated.

In: model directories. Out: `Difference`s, with both values, and sentences for people. Configurations are compared as
transformers resolves them, so a default that one file writes out and the other leaves out is no difference. A setting
counts as changing the forward pass unless it stands in one of the lists here of settings that do not: an unknown one
is named and not passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from evomerge.common.errors import CheckpointError
from evomerge.models.pretrained import first_line, read_config, silence
from evomerge.models.vocabulary import read_object

HARMLESS = re.compile(
    r"_.*|architectures|transformers_version|name_or_path|model_name|auto_map|tokenizer_class|unsloth_.*"
    r"|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|keys_to_ignore_at_inference"
    r"|dtype|torch_dtype|use_bfloat16|torchscript|return_dict|use_cache|chunk_size_feed_forward"
    r"|output_(attentions|hidden_states|scores|logits|router_logits|past)"
    r"|gradient_checkpointing|.*dropout.*|.*pdrop|.*layerdrop|.*drop_path.*|.*drop_rate"
    r"|initializer_.*|init_(std|xavier_std|method|device)|.*_init_std|router_aux_loss_coef|router_z_loss_coef"
)
"""Names of settings that change nothing of the forward pass in eval mode. What a class calls itself and its labels, and
in which dtype it is loaded, is looked at elsewhere."""
TOKENS = frozenset(
    f"{name}_token_id" for name in ("bos", "eos", "pad", "sep", "decoder_start", "forced_bos", "forced_eos")
)
"""Settings that name tokens. Models that only say what comes next use them where text is made or classified."""
TIED = "tie_word_embeddings"
"""Changes which tensors there are, and no logits: a checkpoint is opened by its own tie."""
UNUSED = re.compile(r"_.*|transformers_version|use_cache|output_.*|return_dict_in_generate|.*cache.*|.*compile.*")
"""Settings of a generation config that change no text."""
WIDTHS = (("hidden_size", "n_embd"), ("num_attention_heads", "n_head"))
"""What defaults are computed of, under either of two names."""
FILES = ("config.json", "generation_config.json")
FEW = 4
"""Lists of so many elements are shown as a whole."""
LONG = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Difference:
    """A setting that two model directories have with other values.

    Attributes:
        setting: its name, with the names of what it is nested in before it.
        base: its value in the base; None where it is null or not there.
        other: its value in the other directory.
        forward: whether it can change the forward pass.
    """

    setting: str
    base: Any
    other: Any
    forward: bool = False

    def __str__(self) -> str:
        ours, theirs = _shown(self.base), _shown(self.other)
        if ours == theirs:  # they differ behind what is shown
            ours, theirs = f"{ours} (cut)", f"something else, {theirs} (cut)"
        return f"{self.setting} is {theirs} there and {ours} in the base"


@dataclass(frozen=True)
class Configuration:
    """The configuration of a model directory, read when it is asked for.

    Attributes:
        path: the directory.
        text: of the part that reads alone, in a model of several.
    """

    path: Path
    text: bool = False

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Its files."""
        return {name: (self.path / name).read_bytes() for name in FILES if (self.path / name).is_file()}

    @cached_property
    def resolved(self) -> Any:
        """Its config.json, as transformers resolves it.

        Raises:
            CheckpointError: transformers cannot read it.
        """
        if not (self.path / "config.json").is_file():
            raise CheckpointError(f"{self.path} has no config.json")
        try:
            found = read_config(self.path)
            return found.get_text_config() if self.text else found
        except Exception as error:  # of whatever kind the reader of its config raises
            raise CheckpointError(
                f"transformers cannot read {self.path / 'config.json'}: {first_line(error)}"
            ) from error

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its config.json with those defaults that a model computes.

        Raises:
            CheckpointError: transformers cannot read it.
        """
        return _written_out(self.resolved.to_dict())

    @cached_property
    def generation(self) -> dict[str, Any]:
        """How it generates text: by generation_config.json, or else by config.json.

        Raises:
            CheckpointError: transformers cannot read it.
        """
        file = self.path / "generation_config.json"
        with silence():
            if not file.is_file():
                return GenerationConfig.from_model_config(self.resolved).to_dict()
            try:
                return GenerationConfig.from_pretrained(self.path, local_files_only=True).to_dict()
            except Exception as error:  # of whatever kind its reader raises
                raise CheckpointError(f"transformers cannot read {file}: {first_line(error)}") from error


def compare_configurations(base: Configuration, other: Configuration) -> list[Difference]:
    """Return in what the config.json of a directory differs from the base's, what changes the forward pass first.

    Raises:
        CheckpointError: transformers cannot read one of them.
    """
    if base.files.get("config.json") == other.files.get("config.json"):
        return []
    ours, theirs = base.settings, other.settings
    speaks = _only_says_what_comes_next(str(ours.get("model_type")))
    found = []
    for one in differences(ours, theirs):
        name = one.setting.split("[")[0].split(".")[-1]
        if not _is_harmless(one):
            forward = name != TIED and not (speaks and name in TOKENS)
            found.append(Difference(one.setting, one.base, one.other, forward))
    if other_kind := [one for one in found if one.setting == "model_type"]:  # then they have other settings altogether
        both = [one for one in found if None not in (one.base, one.other) and one.setting != "model_type"]
        found = [*other_kind, *both]
    return sorted(found, key=lambda one: not one.forward)


def compare_generation(base: Configuration, other: Configuration) -> list[Difference]:
    """Return in what text is generated otherwise.

    Raises:
        CheckpointError: transformers cannot read one of them.
    """
    if base.files == other.files:
        return []
    return [
        one for one in differences(base.generation, other.generation) if not UNUSED.fullmatch(one.setting.split(".")[0])
    ]


def configuration_notes(base: Configuration, other: Configuration, who: str) -> list[str]:
    """Return in what a directory is configured otherwise than the base, as sentences.

    Args:
        base: that of the base.
        other: that of the other directory.
        who: what it is called there.
    """
    try:
        found = compare_configurations(base, other)
        generation = compare_generation(base, other)
    except CheckpointError as error:
        written = said(differences(*(read_object(one.path / "config.json") for one in (base, other))))
        more = f" As the files are written, {written}" if written else ""
        return [f"{who} could not be compared with the base in its configuration: {error}{'.' if more else ''}{more}"]
    notes = []
    if forward := [one for one in found if one.forward]:
        notes.append(
            f"{who} was made for another configuration than the base: {said(forward)}. It is merged and scored under "
            f"the base's, where it may give other logits than by itself"
        )
    if tied := [one for one in found if one.setting.split(".")[-1] == TIED]:
        notes.append(
            f"{who} says otherwise whether embedding and head are one: {said(tied)}; the merged model is as the base"
        )
    if tokens := [one for one in found if not one.forward and one not in tied]:
        notes.append(f"{who} names other tokens in its config.json: {said(tokens)}; the base's are used")
    known = {(one.setting, _shown(one.other)) for one in found}
    if generation := [one for one in generation if (one.setting, _shown(one.other)) not in known]:
        notes.append(
            f"{who} generates text in another way (generation_config.json): {said(generation)}; so does not "
            f"the merged model, which generates as the base does"
        )
    return notes


def said(differences: Iterable[Difference]) -> str:
    """Return differences as one text."""
    return "; ".join(map(str, differences))


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Compare two nested mappings, setting by setting; null, empty and not there are one. Of longer lists of one
    length, the first element that differs is named.
    """
    ours, theirs = flat(base), flat(other)
    found = []
    for name in dict.fromkeys((*ours, *theirs)):
        one, two = ours.get(name), theirs.get(name)
        if one == two and isinstance(one, bool) == isinstance(two, bool):
            continue
        if isinstance(one, list) and isinstance(two, list) and len(one) == len(two) > FEW:
            place = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
            found.append(Difference(f"{name}[{place}]", one[place], two[place]))
        else:
            found.append(Difference(name, one, two))
    return found


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with names joined by dots, and lists for tuples; what is empty is left out."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            found |= flat(inner, f"{name}.")
        elif isinstance(inner, list | tuple):
            found |= {name: list(inner)} if inner else {}
        elif inner is not None:
            found[name] = inner
    return found


def _written_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with those defaults that a model computes where its config has null."""
    own: dict[str, Any] = {
        key: _written_out(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    width, heads = (own.get(name) or own.get(short) for name, short in WIDTHS)
    if isinstance(width, int) and isinstance(heads, int):
        computed = {"head_dim": width // heads, "num_key_value_heads": heads, "n_inner": 4 * width}
        own |= {key: value for key, value in computed.items() if key in own and own[key] is None}
    if isinstance(rope := own.get("rope_parameters"), dict):
        rope.pop("type", None)  # the name of earlier years for rope_type, which is there as well
    return own


def _is_harmless(one: Difference) -> bool:
    """Whether a setting changes nothing of the forward pass. With a dropout that is no rate, none loads."""
    if "drop" in one.setting and any(isinstance(x, int | float) and not 0 <= x <= 1 for x in (one.base, one.other)):
        return False
    return any(HARMLESS.fullmatch(part) for part in one.setting.split("[")[0].split("."))


def _only_says_what_comes_next(model_type: str) -> bool:
    """Whether token ids are nothing to the forward pass of a model. Others may count positions from the padding
    (RoBERTa) or pool at the end of a text (CLIP).
    """
    others = (MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not any(model_type in names for names in others)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONG else f"{text[:LONG]}..."
