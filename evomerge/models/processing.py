"""What lies between a text or an image and a model: tokenizers, chat templates, image processors, compared.

In: model directories. Out: sentences about what another directory has otherwise than the base, whose files are used for
all models. Files of the same bytes need no look; others are loaded by transformers, and compared as it resolves them.
What cannot be compared is said.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.image_processing_base import ImageProcessingMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from evomerge.common.code import source_of
from evomerge.common.digests import digest
from evomerge.common.errors import CheckpointError, EvomergeError
from evomerge.common.names import listed
from evomerge.models.configurations import Difference, differences, said
from evomerge.models.pretrained import first_line, load_image_processor, load_tokenizer
from evomerge.models.vocabulary import read_object, read_vocabulary, token_notes

VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "tekken.json", "*.tiktoken", "bpe.codes", "dict.txt")
"""Files that hold a vocabulary."""
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "normalizer.json")
"""Files that say the rest of a tokenizer."""
PIXELS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
UNREAD = frozenset(
    (
        *("name_or_path", "tokenizer_class", "backend", "is_local", "local_files_only", "processor_class", "auto_map"),
        *("chat_template", "vocab_file", "merges_file", "tokenizer_file", "vocab", "merges", "tokenizer_object"),
        *("special_tokens_map_file", "added_tokens_decoder", "trust_remote_code", "transformers_version", "is_fast"),
        *("padding", "truncation", "truncation_strategy", "max_length", "stride"),  # each call says them anew
        *("image_processor_type", "feature_extractor_type", "_processor_class", "return_tensors", "use_fast"),
        *("data_format", "input_data_format", "device", "extra_special_tokens"),
    )
)
"""Settings of tokenizers and image processors that change no input of a model, or are compared by themselves."""


@dataclass(frozen=True)
class Processing:
    """The files of a model directory that make inputs of texts and images, read when they are asked for.

    Attributes:
        path: the directory.
    """

    path: Path

    @cached_property
    def tokenizing(self) -> dict[str, bytes]:
        """The files of its tokenizer."""
        return self._read((*VOCABULARIES, *SETTINGS))

    @cached_property
    def has_vocabulary(self) -> bool:
        """Whether any file holds a vocabulary."""
        return bool(self._read(VOCABULARIES))

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer as transformers loads it; a text with the reason where it cannot."""
        try:
            return load_tokenizer(self.path)
        except CheckpointError as error:
            return first_line(error.__cause__ or error)

    @cached_property
    def templates(self) -> dict[str, str]:
        """Its chat templates by name."""
        return read_templates(self.path)

    @cached_property
    def pixels(self) -> dict[str, Any] | None:
        """The settings of its image processor as transformers resolves them; None where it cannot."""
        try:
            return load_image_processor(self.path).to_dict()
        except EvomergeError:  # that of the base is loaded, and explained, with the live model
            return None

    @cached_property
    def stated_pixels(self) -> dict[str, Any]:
        """The settings of its image processor as its files say."""
        return {
            key: value for name in PIXELS for key, value in read_object(self.path / name).items() if key not in UNREAD
        }

    @cached_property
    def imaging(self) -> dict[str, bytes]:
        """The files of its image processor."""
        return self._read(PIXELS)

    def _read(self, patterns: tuple[str, ...]) -> dict[str, bytes]:
        files = sorted({file for pattern in patterns for file in self.path.glob(pattern) if file.is_file()})
        return {file.name: file.read_bytes() for file in files}


def processing_notes(
    base: Processing,
    other: Processing,
    who: str,
    text: bool = False,
    united: bool = False,
    asked: tuple[str, Processing] | None = None,
) -> list[str]:
    """Return in what a directory makes inputs otherwise than the base, as sentences.

    Args:
        base: of the base.
        other: of the other directory.
        who: what it is called there.
        text: whether it only reads, whatever the base does.
        united: whether the tokens of both are in one tokenizer.
        asked: whose chat template all are asked with, in words, and its files; None for the base's.
    """
    pixels = [] if text else _pixels(base, other)
    template = _template(other, *(asked or ("the base", base)))
    return [f"{who} {note}" for note in (*_tokenizer(base, other, united), *template, *pixels)]


def digest_processor(processor: Any) -> str:
    """Return a hash of what a tokenizer or image processor in memory does; what it has read leaves no trace in it.

    One of somebody else's class counts by the source of the class.
    """
    if isinstance(processor, PreTrainedTokenizerBase):
        own = {name: str(value) for name, value in _settings(processor).items() if name not in UNREAD}
        backend = {name: part for name, part in _backend(processor).items() if name not in ("truncation", "padding")}
        return digest([own, _special(processor), processor.get_vocab(), backend, str(processor.chat_template)])
    if isinstance(processor, ImageProcessingMixin):
        own = {name: str(value) for name, value in processor.to_dict().items() if name not in UNREAD}
        return digest([type(processor).__name__, own])
    return digest(source_of(processor if inspect.isroutine(processor) else type(processor)))


def read_templates(path: Path) -> dict[str, str]:
    """Return the chat templates of a directory by name; files of their own go before the tokenizer's settings."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        given = read_object(path / name).get("chat_template")
        if isinstance(given, list):
            found |= {str(one.get("name")): str(one.get("template")) for one in given if isinstance(one, dict)}
        elif given:
            found["default"] = str(given)
    for pattern in ("additional_chat_templates/*.jinja", "chat_template.jinja"):
        for file in sorted(path.glob(pattern)):
            name = "default" if file.name == "chat_template.jinja" else file.stem
            found[name] = file.read_text(encoding="utf-8", errors="replace")
    return found


def _tokenizer(base: Processing, other: Processing, united: bool) -> list[str]:
    if base.tokenizing == other.tokenizing:
        return []
    if base.has_vocabulary != other.has_vocabulary:
        lacking, has = (
            ("holds no tokenizer", "the base's, which is used for all")
            if base.has_vocabulary
            else ("holds a tokenizer, and the base holds none", "the base's")
        )
        return [f"{lacking}, so it could not be compared with {has}"]
    unread = next((f"{one.path}: {one.tokenizer}" for one in (base, other) if isinstance(one.tokenizer, str)), None)
    if unread is not None:
        notes = token_notes(read_vocabulary(base.path), read_vocabulary(other.path))
        beyond = "in its tokens alone" if None not in map(read_vocabulary, (base.path, other.path)) else "at all"
        names = [name for name in {**base.tokenizing, **other.tokenizing} if _differ(base, other, name)]
        how = "could be compared with the base's " + beyond if beyond != "at all" else "could not be compared"
        return [*notes, f"has another {listed(names)} than the base: its tokenizer {how} ({unread})"]
    ours, theirs = base.tokenizer, other.tokenizer
    notes = [] if united else token_notes(ours.get_vocab(), theirs.get_vocab())
    both = ours.get_vocab().keys() & theirs.get_vocab().keys()
    found = differences(_special(ours), _special(theirs)) + differences(_parts(ours, both), _parts(theirs, both))
    found += [one for one in differences(_settings(ours), _settings(theirs)) if not _is_known(one, found)]
    if found:
        notes.append(f"has another tokenizer than the base, whose is used for all: {said(found)}")
    if not notes and not _backend(ours) and any(_differ(base, other, name) for name in base._read(VOCABULARIES)):
        notes.append("has a tokenizer of other bytes than the base's, which could be compared in its tokens alone")
    return notes


def _differ(base: Processing, other: Processing, name: str) -> bool:
    return base.tokenizing.get(name) != other.tokenizing.get(name)


def _settings(tokenizer: Any) -> dict[str, Any]:
    """Return what else a tokenizer was made with; sides as they are, since defaults may be written out."""
    return {
        **{name: value for name, value in tokenizer.init_kwargs.items() if not name.endswith("_token")},
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "model_max_length": tokenizer.model_max_length,
    }


def _special(tokenizer: Any) -> dict[str, Any]:
    return {
        name: [*map(str, token)] if isinstance(token, list) else str(token)
        for name, token in tokenizer.special_tokens_map.items()
    }


def _parts(tokenizer: Any, tokens: Collection[str]) -> dict[str, Any]:
    """Return what a tokenizer does, part by part, without its vocabulary; of added tokens, what is done with these."""
    content = _backend(tokenizer)
    model = {key: value for key, value in (content.get("model") or {}).items() if key != "vocab"}
    flags = {
        token["content"]: {key: value for key, value in token.items() if key not in ("id", "content")}
        for token in content.get("added_tokens") or ()
        if token["content"] in tokens
    }
    parts = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    return {**parts, "model": model, "added_tokens": flags}


def _backend(tokenizer: Any) -> dict[str, Any]:
    """Return the whole of a fast tokenizer; nothing of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())


def _is_known(one: Difference, found: list[Difference]) -> bool:
    """Whether a setting of a tokenizer says nothing, or nothing new."""
    name = one.setting.split(".")[0].split("[")[0]
    return name in UNREAD or any(name == other.setting.split(".")[0] for other in found)


def _template(other: Processing, whose: str, used: Processing) -> list[str]:
    if used.templates == other.templates or used.has_vocabulary > other.has_vocabulary:
        return []  # one without a tokenizer has been told of
    if not other.templates:
        return [f"has no chat template, and {whose} has one, which is used for all: it was tuned on other prompts"]
    if not used.templates:
        return [f"has a chat template, and {whose} has none, so none is used: it was tuned on other prompts"]
    names = [
        name for name in {**used.templates, **other.templates} if used.templates.get(name) != other.templates.get(name)
    ]
    which = "" if names == ["default"] else f" ({listed(names)})"
    return [f"has another chat template than {whose}{which}, whose is used for all: it was tuned on other prompts"]


def _pixels(base: Processing, other: Processing) -> list[str]:
    if base.imaging == other.imaging:
        return []
    if bool(base.imaging) != bool(other.imaging):
        lacking = "holds no image processor" if base.imaging else "holds an image processor, and the base holds none"
        return [f"{lacking}, so it could not be compared with the base's"]
    ours, theirs = base.pixels, other.pixels
    if ours is None or theirs is None:
        ours, theirs = base.stated_pixels, other.stated_pixels
    if not (found := [one for one in differences(ours, theirs) if not _is_known(one, [])]):
        return []
    return [f"has another image processor than the base, whose is used for all: {said(found)}; it saw other pixels"]
