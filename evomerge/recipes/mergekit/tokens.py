"""What a merge YAML says of tokens, and what evomerge makes of it.

In: a `Document`, and the directories of base and experts. Out: what becomes of experts with other tokens
(`model.vocabulary`). mergekit 0.1.5 takes rows by their tokens: a row that a model lacks is the base's, or else that of
the model which has it, the mean of several; rows without a token are left out. Where evomerge cannot give every token
the same row, the YAML is refused; where the number of rows is another one, that is said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from evomerge.common.names import listed
from evomerge.models.adapter_files import is_adapter
from evomerge.models.live import LiveModel
from evomerge.models.union import token_rows
from evomerge.models.vocabulary import REFUSE, SHARED, UNION, compare_tokens, read_vocabulary
from evomerge.recipes.mergekit.document import Document, Reference, read_reference
from evomerge.recipes.mergekit.evaluate import flag
from evomerge.recipes.mergekit.nodes import Node

BASE = "base"
KEYS = ("source", "tokens", "pad_to_multiple_of")

Vocabularies = Mapping[Reference, Mapping[str, int]]
"""Model -> the tokens that it has a row for, with the row."""


def read_tokens(places: Mapping[Reference, Path]) -> dict[Reference, dict[str, int]]:
    """Return the tokens of each model that has rows of its own, and says which tokens they are for.

    Args:
        places: model -> its directory.
    """
    found = {}
    for model, path in places.items():
        if not is_adapter(path) and (tokens := read_vocabulary(path)) is not None:
            rows = token_rows(path)
            found[model] = {token: at for token, at in tokens.items() if at < rows}
    return found


def choose_vocabulary(
    document: Document, base: Reference, known: Vocabularies, places: Mapping[Reference, Path]
) -> str:
    """Return what becomes of experts with other tokens.

    Args:
        document: the YAML.
        base: the model whose tokenizer is the base's.
        known: the tokens of all models.
        places: model -> its directory.

    Raises:
        ConfigError: the YAML asks for rows that evomerge does not make; the message names the line.
    """
    if (at := document.tokenizer) is None:
        return REFUSE
    union = _is_union(document, base, known)
    others = [model for model in known if base in known and known[model] != known[base]]
    tokens = {model: compare_tokens(known[base], known[model]) for model in others}
    moved = [model for model in others if _moved(tokens[model], known[base], token_rows(places[model]))]
    added = [model for model in others if tokens[model]["added"]]
    if not union and moved and added:
        raise at.error(
            f"{moved[0]} has tokens in other places than the base, and {added[0]} tokens that the base lacks "
            f"({listed(tokens[added[0]]['added'])}). evomerge puts rows to their tokens where it keeps all of them, or "
            f"merges rows by their place: write tokenizer_source: union"
        )
    if not moved and not (union and added):
        return SHARED if base in known and len({token_rows(places[model]) for model in known}) > 1 else REFUSE
    if document.base is None:
        raise at.error(
            "without base_model, mergekit gives a model the mean of all others for a token that it lacks, and evomerge "
            "the row of the first one: write base_model"
        )
    return UNION


def check_tokens(document: Document, live: LiveModel, base: Reference, known: Vocabularies, path: Path) -> None:
    """Refuse rows that are asked for and not made, and say where their number is another one than mergekit's.

    Args:
        document: the YAML.
        live: the base, with the tokens of all models where they are united.
        base: which model that is.
        known: the tokens of all models.
        path: the directory of the base.

    Raises:
        ConfigError: some are; the message names the line.
    """
    if (at := document.tokenizer) is None:
        return
    tokens = known.get(base, {}) if live.union is None else live.union.tokenizer.get_vocab()
    if not tokens:
        document.notes.add(at, f"the tokens of {base} cannot be read, so they were not compared with those of others")
    rows = token_rows(path) if live.union is None else live.union.size
    padding = at.get("pad_to_multiple_of") if isinstance(at.value, dict) else None
    multiple = 1 if padding is None else int(padding.text()) if padding.text().isdecimal() else 0
    if padding and not multiple:
        raise padding.error(f"there must be a number from 1, not {padding.plain()!r}")
    _check_chosen(at, base, known, tokens)
    wanted = -(-len(tokens) // multiple) * multiple
    if padding and (not tokens or wanted not in (len(tokens), rows)):
        raise padding.error(
            f"there would be {wanted} rows for {len(tokens)} tokens, and the merged model has {rows} in evomerge: "
            f"leave pad_to_multiple_of out, and pad the merged model afterwards (resize_token_embeddings)"
        )
    if tokens and wanted != rows:
        document.notes.add(
            at, f"the merge has {rows} rows for tokens, and mergekit {wanted}: it leaves out rows without a token"
        )
    elif wanted > len(tokens) > 0:
        document.notes.add(
            padding, f"rows from {len(tokens)} on have no token: mergekit fills them with a mean, evomerge merges them"
        )


def _is_union(document: Document, base: Reference, known: Vocabularies) -> bool:
    """Return whether the tokens of all models are kept, or else the base's alone."""
    source = document.tokenizer
    if source is not None and isinstance(source.value, dict) and "model" not in source.value:
        document.notes.unread(source, KEYS, "a tokenizer")
        source = source.get("source")
    if source is None or source.value in (BASE, UNION):
        return source is None or source.value == UNION
    model = read_reference(source)
    if model != base and known.get(model, {}) != known.get(base, ()):
        raise source.error(
            f"{model} has other tokens than the base, or is none of the models, and the merged model has the base's "
            f"tokens in evomerge, or those of all: write base or union"
        )
    return False


def _moved(tokens: Mapping[str, Collection[str]], base: Mapping[str, int], rows: int) -> bool:
    """Return whether a row of an expert stands for another token than the row of the base in its place."""
    return bool(tokens["moved"]) or any(base[token] < rows for token in tokens["lost"])


def _check_chosen(at: Node, base: Reference, known: Vocabularies, tokens: Mapping[str, int]) -> None:
    """Refuse rows that are chosen by hand, unless they are those that a token gets anyway."""
    chosen = at.get("tokens") if isinstance(at.value, dict) else None
    for token, entry in chosen.items.items() if chosen else ():
        has = [model for model, own in known.items() if token in own]
        forced = entry.get("force")
        if token not in tokens or (forced and flag(forced)):
            what = "a row of every model would be replaced" if token in tokens else "no model has it that counts here"
            raise entry.error(
                f"the row of {token} would be chosen by hand, and {what}. evomerge gives each token the rows that the "
                f"models have: leave it out of `tokens`"
            )
        donor = base if base in has else has[0] if len(has) == 1 else None
        if len(has) < len(known) and (donor is None or _source_of(entry, token) != donor):
            ours = f"that of {donor}" if donor else f"the mean of {listed([str(model) for model in has])}"
            raise entry.error(
                f"models that lack {token} would get another row for it than {ours}, which evomerge gives them: "
                f"leave it out of `tokens`"
            )


def _source_of(entry: Node, token: str) -> Reference | None:
    """Return the model whose row of the same token is to be taken; None for any other row."""
    source = entry.get("source")
    if source is None or not isinstance(source.value, dict) or "kind" not in source.value:
        return None if source is None else read_reference(source)
    named, model = source.get("token"), source.get("model")
    return read_reference(model) if model and named and named.text() == token else None
