"""What a merge YAML says of tokenizers and templates, and what evomerge makes of it.

In: a `Document`, and the directories of base and experts. Out: what becomes of experts with another number of tokens
(`model.vocabulary`). The merged model always has the base's tokenizer; where that is not what the YAML asks for, it is
refused, and where mergekit would change the number of rows, that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.common.names import listed
from evomerge.models.vocabulary import REFUSE, SHARED, compare_tokens, read_vocabulary
from evomerge.recipes.mergekit.document import Document
from evomerge.recipes.mergekit.nodes import Node

BASE, UNION = "base", "union"


def choose_vocabulary(document: Document, base: Path, experts: Mapping[str, Path]) -> str:
    """Return what becomes of experts with another number of tokens.

    Args:
        document: the YAML.
        base: the directory of the base.
        experts: those of the experts.

    Raises:
        ConfigError: the YAML asks for another tokenizer or template than the base's; the message names the line.
    """
    if document.template is not None:
        _check_template(document.template)
        document.notes.add(
            document.template, "mergekit takes the template that most models have; this merge, the base's"
        )
    if document.tokenizer is None:
        return REFUSE
    source, at = _source(document.tokenizer), document.tokenizer
    ours, differ = read_vocabulary(base), list[str]()
    for name, path in experts.items():
        theirs = read_vocabulary(path)
        if ours is None or theirs is None or ours == theirs:
            continue
        tokens = compare_tokens(ours, theirs)
        if tokens["moved"]:
            raise at.error(
                f"the expert {name} gives {listed(tokens['moved'])} another id than the base, and mergekit would "
                f"reorder its rows by the tokens. evomerge merges rows by their place: save the expert with the base's "
                f"tokenizer first"
            )
        if tokens["added"] and source != BASE:
            raise at.error(
                f"the expert {name} has tokens that the base lacks ({listed(tokens['added'])}), and tokenizer "
                f"{source} would keep them. The merged model has the base's tokenizer in evomerge: write "
                f"tokenizer_source: base"
            )
        differ.append(name)
    if differ:
        document.notes.add(
            at,
            f"the tokens of {listed(differ)} are not the base's: the merge has the base's tokenizer and its number of "
            f"rows, where mergekit may have fewer",
        )
    return SHARED if differ else REFUSE


def _source(node: Node) -> str:
    """Return the tokenizer that is asked for: `base`, `union`, or a model."""
    if not isinstance(node.value, dict):
        return node.text()
    if tokens := node.get("tokens"):
        raise tokens.error(
            f"the rows of {listed(list(tokens.items))} would be chosen by hand, and evomerge merges them as all "
            f"others: leave `tokens` out"
        )
    if padding := node.get("pad_to_multiple_of"):
        raise padding.error(
            "the number of rows would change, and the merged model has those of the base in evomerge: leave "
            "pad_to_multiple_of out, and pad the merged model afterwards (resize_token_embeddings)"
        )
    source = node.get("source")
    return UNION if source is None else source.text() if not isinstance(source.value, dict) else str(source.plain())


def _check_template(node: Node) -> None:
    if node.text() != "auto":
        raise node.error(
            "the merged model has the chat template of the base in evomerge: leave chat_template out, and write the "
            "template to chat_template.jinja of the merged directory"
        )
