"""Log-probabilities that a causal language model gives to answers that follow contexts.

In: requests, each a context and an answer as tokens. Out: for each request the sum over the answer of
log p(token | all before it), and whether greedy decoding would have given the answer. A context that several answers
follow is run once, and they behind its keys and values, which costs what its tokens cost and not that times the number
of answers. Logits are computed at the answers only, and taken as float32 or better. Batches depend on the requests
alone; padding stands on the right, where causal attention does not see it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from evomerge.common.errors import ConfigError
from evomerge.models.spreading import is_spread

Target = tuple[int, int, int, int]
"""A token to be scored: the row and the column of the input whose logits speak of it, the token, its request."""


CHUNK = 1024
"""Tokens whose probabilities are taken at once: more would hold several copies of all logits of a batch."""


@dataclass(frozen=True)
class Request:
    """An answer to be scored, and what stands before it: token ids, both at least one."""

    context: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """What a model says of n requests.

    Attributes:
        log_probability: sums over the answers, natural logarithms, float64 (n,).
        greedy: whether every token of the answer is the most probable one, bool (n,).
        seconds: spent in the model.
    """

    log_probability: np.ndarray
    greedy: np.ndarray
    seconds: float


@dataclass(frozen=True)
class _Pass:
    """Inputs (B, T), the columns (P,) at which logits are wanted, and for each of N targets its row, its place among
    the columns, its token and its request.
    """

    inputs: Tensor
    columns: Tensor
    rows: Tensor
    places: Tensor
    tokens: Tensor
    owners: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """What goes through a model together: rows; or contexts, and then the answers behind those that `index` names,
    with what they may attend to (B, Tc + T) and their positions (B, T).
    """

    first: _Pass
    rest: _Pass | None = None
    index: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None


def clipped(context: Sequence[int], answer: Sequence[int], limit: int) -> Request:
    """Return a request whose inputs are no more than `limit` tokens: what is too much of the context is cut off at its
    beginning.

    Raises:
        ConfigError: the answer alone is longer than that.
    """
    if len(answer) > limit:
        raise ConfigError(
            f"An answer of {len(answer)} tokens is longer than the {limit} that the model takes: leave it out, or "
            f"cut it shorter."
        )
    tokens = (*context, *answer)[-(limit + 1) :]
    return Request(tokens[: -len(answer)], tuple(answer))


def windows(tokens: Sequence[int], prefix: int, length: int) -> list[Request]:
    """Cut a text into requests that score each token once, with inputs of at most `length` tokens.

    The first begins behind the prefix, the others behind the last token of the one before; the last one sees as much of
    what stands before it as fits.

    Args:
        tokens: of the text.
        prefix: the token before the text.
        length: of a window.
    """
    whole = (prefix, *tokens)
    requests = []
    for start in range(0, len(tokens), length):
        end = min(start + length, len(tokens))
        context = whole[max(end - length, 0) : start + 1]
        requests.append(Request(context, whole[start + 1 : end + 1]))
    return requests


def can_share(model: nn.Module) -> bool:
    """Whether answers can be run behind the keys and values of their context: all layers must keep all of them."""
    if not {"past_key_values", "attention_mask", "position_ids"} <= inspect.signature(model.forward).parameters.keys():
        return False
    if getattr(model, "_is_stateful", False):  # state-space models
        return False
    if "local" in getattr(model.config, "attention_layers", ()):  # GPT-Neo: a window, though its cache keeps all
        return False
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    if any(getattr(table, "padding_idx", None) is not None for table in tables):  # RoBERTa: positions do not begin at 0
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)  # pyright: ignore[reportArgumentType]


@torch.inference_mode(False)  # what is kept must also serve where gradients are taken
def make_batches(
    requests: Sequence[Request], size: int, device: torch.device | str, share: bool = True
) -> list[TokenBatch]:
    """Arrange requests for a model, the longest first, so that a lack of memory shows at once.

    Args:
        requests: to be scored.
        size: of a batch, in answers.
        device: of the model.
        share: run a context once for all its answers.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        by_context.setdefault(request.context, []).append(number)
    rows: dict[tuple[int, ...], list[int]] = {}  # inputs -> the requests that end in one of them
    shared: list[tuple[tuple[int, ...], list[int]]] = []
    for context, unsorted in by_context.items():
        ordered = sorted(unsorted, key=lambda number: (-len(requests[number].answer), requests[number].answer))
        for start in range(0, len(ordered), size):
            numbers = ordered[start : start + size]
            if share and len(numbers) > 1 and any(len(requests[number].answer) > 1 for number in numbers):
                shared.append((context, numbers))
                continue
            for number in numbers:
                rows.setdefault((*context, *requests[number].answer[:-1]), []).append(number)
    whole = sorted(rows.items(), key=_longest_first)
    batches = [_rows(whole[start : start + size], requests, device) for start in range(0, len(whole), size)]
    packed: list[list[tuple[tuple[int, ...], list[int]]]] = []
    for group in sorted(shared, key=_longest_first):
        if not packed or sum(len(numbers) for _, numbers in packed[-1]) + len(group[1]) > size:
            packed.append([])
        packed[-1].append(group)
    return batches + [_shared(groups, requests, device) for groups in packed]


def forward(model: nn.Module, batch: TokenBatch) -> Iterator[tuple[_Pass, Tensor]]:
    """Run a batch; yield what is wanted, and logits at the columns where it is, (B, P, V)."""
    if batch.rest is None:
        yield batch.first, _run(model, batch.first, use_cache=False)[1]
        return
    assert batch.index is not None  # it comes with `rest`
    output, logits = _run(model, batch.first, use_cache=True)
    yield batch.first, logits
    cache = output.past_key_values
    for layer in cache.layers:  # which lie where the layers of the model do
        layer.batch_select_indices(batch.index.to(layer.keys.device))
    behind = {"past_key_values": cache, "attention_mask": batch.mask, "position_ids": batch.positions}
    yield batch.rest, _run(model, batch.rest, **behind)[1]


def log_probabilities(model: nn.Module, batches: Sequence[TokenBatch], n: int) -> tuple[Tensor, Tensor]:
    """Return the sums of log-probabilities of n requests, float64 (n,), with a graph where gradients are wanted, and
    whether greedy decoding gives the answers, bool (n,); both on the CPU.
    """
    sums, wrong = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool)
    for batch in batches:
        for wanted, whole in forward(model, batch):
            for start in range(0, len(wanted.tokens), CHUNK):
                part = slice(start, start + CHUNK)
                logits = whole[wanted.rows[part], wanted.places[part]]
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                tokens, owners = wanted.tokens[part], wanted.owners[part]
                chosen = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]
                sums = sums.index_add(0, owners, chosen.double().cpu())
                wrong[owners[(logits.argmax(-1) != tokens).cpu()]] = True
    return sums, ~wrong


def token_logits(model: nn.Module, batches: Sequence[TokenBatch]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of all tokens of all answers, (N, V), with a graph where gradients are wanted, the tokens (N,),
    and the numbers of their requests (N,).
    """
    parts = [
        (whole[wanted.rows, wanted.places], wanted.tokens, wanted.owners)
        for batch in batches
        for wanted, whole in forward(model, batch)
    ]
    logits, tokens, owners = (torch.cat(each) for each in zip(*parts, strict=True))
    return logits, tokens, owners


@torch.inference_mode()
def score(model: nn.Module, batches: Sequence[TokenBatch], n: int) -> Scores:
    """Score n requests.

    Args:
        model: a causal language model of transformers.
        batches: of `make_batches`.
        n: the number of requests in them.
    """
    started = time.perf_counter()
    sums, greedy = log_probabilities(model, batches, n)
    return Scores(sums.numpy(), greedy.numpy(), time.perf_counter() - started)


def _longest_first(group: tuple[tuple[int, ...], list[int]]) -> tuple[int, tuple[int, ...]]:
    return -len(group[0]), group[0]


def _run(model: nn.Module, wanted: _Pass, **behind: Any) -> tuple[Any, Tensor]:
    """Return the model's output, and its logits at the columns that are wanted."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        columns = wanted.columns.cpu() if is_spread(model) else wanted.columns  # the CPU's serve wherever a model ends
        output = model(input_ids=wanted.inputs, logits_to_keep=columns, **behind)
        return output, output.logits
    output = model(input_ids=wanted.inputs, **behind)
    return output, output.logits[:, wanted.columns]


def _rows(
    rows: Sequence[tuple[tuple[int, ...], list[int]]], requests: Sequence[Request], device: torch.device | str
) -> TokenBatch:
    targets: list[Target] = []
    for row, (tokens, numbers) in enumerate(rows):
        for number in numbers:
            answer = requests[number].answer
            targets += [(row, len(tokens) - len(answer) + i, token, number) for i, token in enumerate(answer)]
    return TokenBatch(_pass([tokens for tokens, _ in rows], targets, device))


def _shared(
    groups: Sequence[tuple[tuple[int, ...], list[int]]], requests: Sequence[Request], device: torch.device | str
) -> TokenBatch:
    contexts = [context for context, _ in groups]
    first: list[Target] = []
    rest: list[Target] = []
    answers: list[tuple[int, ...]] = []
    index: list[int] = []
    for row, (context, numbers) in enumerate(groups):
        for number in numbers:
            token, *others = requests[number].answer
            first.append((row, len(context) - 1, token, number))
            if others:
                rest += [(len(answers), i, other, number) for i, other in enumerate(others)]
                answers.append(requests[number].answer[:-1])
                index.append(row)
    lengths = torch.tensor([len(contexts[row]) for row in index])
    widest, width = max(map(len, contexts)), max(map(len, answers))
    mask = torch.ones(len(index), widest + width, dtype=torch.long)
    mask[:, :widest] = torch.arange(widest) < lengths[:, None]
    return TokenBatch(
        _pass(contexts, first, device),
        _pass(answers, rest, device),
        torch.tensor(index, device=device),
        mask.to(device),
        (lengths[:, None] + torch.arange(width)).to(device),
    )


def _pass(inputs: Sequence[tuple[int, ...]], targets: Sequence[Target], device: torch.device | str) -> _Pass:
    padded = nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in inputs], batch_first=True)
    rows, columns, tokens, owners = (torch.tensor(values) for values in zip(*targets, strict=True))
    wanted, places = columns.unique(return_inverse=True)
    padded, wanted, rows, places, tokens = (each.to(device) for each in (padded, wanted, rows, places, tokens))
    return _Pass(padded, wanted, rows, places, tokens, owners)
