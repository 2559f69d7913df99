"""Whose chat template a merge YAML asks for, and whose the merge has.

In: a `Document`, and the directories of base and experts. Out: nothing where that is the base's, else the expert whose
template it is (`model.template`). mergekit 0.1.5 takes the text that stands there, or with `auto` the one that most
models have; a text that no model has cannot be honoured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from evomerge.models.adapter_files import is_adapter
from evomerge.models.pretrained import load_tokenizer
from evomerge.models.processing import read_templates
from evomerge.models.templates import GENERATION
from evomerge.models.vocabulary import read_object
from evomerge.recipes.mergekit.document import Document

AUTO = "auto"


def choose_template(document: Document, base: Path, experts: Mapping[str, Path]) -> str | None:
    """Return the expert whose template the merge has; None for the base's.

    Args:
        document: the YAML.
        base: the directory of the base.
        experts: those of the experts by name.

    Raises:
        ConfigError: nobody has the template that is asked for, or whoever has it ends with a token that the base
            lacks; the message names the line.
    """
    if (at := document.template) is None:
        return None
    ours, wanted = _default(base), at.text().strip()
    texts = {name: ours if is_adapter(path) else _default(path) for name, path in experts.items()}  # on that base
    if wanted == AUTO:
        others = [] if base in experts.values() else [ours]
        counts = Counter(text for text in (*others, *texts.values()) if text)
        wanted = max(counts, key=lambda text: counts[text], default=ours)
    if wanted == ours:
        return None
    name = next((name for name, text in texts.items() if text == wanted), None)
    if name is None:
        what = "no model has this chat template" if "{" in wanted else f"{wanted} names a template of mergekit's own"
        raise at.error(
            f"{what}, and the merged model has the one of the base, or of an expert, in evomerge: leave chat_template "
            f"out, and write the template to chat_template.jinja of the merged directory"
        )
    _check_end(document, base, name, experts[name])
    return name


def _default(path: Path) -> str:
    return read_templates(path).get("default", "").strip()


def _check_end(document: Document, base: Path, name: str, expert: Path) -> None:
    """Say what comes with the template of an expert, and refuse an end token that the base's tokenizer lacks."""
    at, tokenizers = document.template, [load_tokenizer(path) for path in (base, expert)]
    ends = [tokenizer.eos_token for tokenizer in tokenizers]
    known = [tokenizer.get_vocab().get(ends[1]) for tokenizer in tokenizers]
    if at is not None and known[0] != known[1]:
        raise at.error(
            f"the template is that of {name}, whose end token {ends[1]} is not the same token of the base's tokenizer, "
            f"so the merge could not say it: leave chat_template out"
        )
    if ends[0] != ends[1] or read_object(base / GENERATION) != read_object(expert / GENERATION):
        document.notes.add(
            at, f"with the template of {name} come its end token and generation config; mergekit leaves the base's"
        )
