"""Whose chat template, stop tokens and generation config a merge has: the base's, or those of one expert.

In: the directory of an expert. Out: a live model that is asked as that expert was trained to be asked, and the same in
the files of a merged directory, where everything else of the tokenizer stays the base's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from evomerge.common.digests import digest
from evomerge.common.errors import ConfigError
from evomerge.common.files import write_atomically
from evomerge.models.live import LiveModel
from evomerge.models.pretrained import load_tokenizer
from evomerge.models.processing import read_templates
from evomerge.models.vocabulary import read_object

BASE = "base"
"""What `model.template` is where it names no expert."""
GENERATION = "generation_config.json"
DEFAULT, OTHERS = "chat_template.jinja", "additional_chat_templates"
SPECIAL = ("tokenizer_config.json", "special_tokens_map.json")


def adopt(live: LiveModel, name: str, expert: Path) -> None:
    """Let a live model be asked as an expert is: with its template, its end token and its generation config.

    Args:
        live: the base; its tokenizer and generation config are changed.
        name: of the expert.
        expert: its directory.

    Raises:
        ConfigError: one of them has no tokenizer, or the expert's end token is not the same token of the base.
        CheckpointError: the tokenizer of the expert cannot be loaded.
    """
    ours = live.processor
    if not isinstance(ours, PreTrainedTokenizerBase) or not expert.is_dir():
        raise ConfigError(f"model.template={name}: base and expert need tokenizers in directories: write base.")
    theirs = load_tokenizer(expert)
    end = theirs.eos_token
    if end is not None and ours.get_vocab().get(end) != theirs.get_vocab().get(end):
        raise ConfigError(
            f"model.template={name}: its end token {end} is not the same token of the base's tokenizer, so the merge "
            f"could not say it: write model.template=base."
        )
    ours.chat_template = theirs.chat_template
    if end is not None:
        ours.eos_token = end
    if (expert / GENERATION).is_file():
        live.model.generation_config = GenerationConfig.from_pretrained(expert, local_files_only=True)


def digest_template(expert: Path) -> str:
    """Return a hash of all that an expert gives."""
    return digest([read_templates(expert), _end(expert), read_object(expert / GENERATION)])


def write_template(directory: Path, expert: Path) -> None:
    """Write template, end token and generation config of an expert into a directory that has the base's.

    Args:
        directory: of the merged model, with all files of the base's tokenizer.
        expert: the directory of the expert.
    """
    (directory / DEFAULT).unlink(missing_ok=True)
    (directory / "chat_template.json").unlink(missing_ok=True)
    shutil.rmtree(directory / OTHERS, ignore_errors=True)
    end = _end(expert)
    for file in SPECIAL:
        if (directory / file).is_file():
            known = read_object(directory / file)
            known.pop("chat_template", None)
            _rewrite(directory / file, known if end is None else {**known, "eos_token": end})
    for name, text in read_templates(expert).items():
        target = directory / DEFAULT if name == "default" else directory / OTHERS / f"{name}.jinja"
        target.parent.mkdir(exist_ok=True)
        write_atomically(target, text)
    if (expert / GENERATION).is_file():
        (directory / GENERATION).unlink(missing_ok=True)
        shutil.copyfile(expert / GENERATION, directory / GENERATION)


def _end(expert: Path) -> str | None:
    return load_tokenizer(expert).eos_token


def _rewrite(file: Path, content: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
