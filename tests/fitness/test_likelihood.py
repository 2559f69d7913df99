"""Log-probabilities of answers: fast, in batches and behind shared contexts, and slow and plain."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from evomerge.common.errors import ConfigError
from evomerge.fitness.likelihood import Request, can_share, clipped, log_probabilities, make_batches, score, windows
from tests.kit.models import GPT2, LLAMA, LLAMA_TIED, MIXTRAL, TINY, pico

SHARING = {
    "llama": (LlamaForCausalLM, LLAMA),
    "llama, tied head": (LlamaForCausalLM, LLAMA_TIED),
    "gpt2, absolute positions": (GPT2LMHeadModel, GPT2),
    "mixtral, experts": (MixtralForCausalLM, MIXTRAL),
}
ALONE = {
    "mistral, sliding window": (MistralForCausalLM, MistralConfig(**TINY, num_key_value_heads=2, sliding_window=4)),
    "gemma2, softcapped logits": (Gemma2ForCausalLM, Gemma2Config(**TINY, num_key_value_heads=2, head_dim=16)),
    "bloom, no position ids": (BloomForCausalLM, BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=50)),
    "gpt_neo, local": (
        GPTNeoForCausalLM,
        GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            num_heads=2,
            window_size=3,
            vocab_size=50,
            max_position_embeddings=64,
        ),
    ),
    "roberta, positions from 2": (
        RobertaForCausalLM,
        RobertaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            vocab_size=50,
            max_position_embeddings=64,
            is_decoder=True,
        ),
    ),
    "mamba, states": (MambaForCausalLM, MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50)),
}


def drawn(seed: int, contexts: int = 6) -> list[Request]:
    """Contexts of one to eight tokens, each before one to five answers of one to four tokens."""
    rng = random.Random(seed)
    return [
        Request(context, tuple(rng.choices(range(3, 50), k=rng.randint(1, 4))))
        for context in [tuple(rng.choices(range(3, 50), k=rng.randint(1, 8))) for _ in range(contexts)]
        for _ in range(rng.randint(1, 5))
    ]


def plainly(model, requests) -> tuple[np.ndarray, np.ndarray]:
    """One request at a time, all logits in float32."""
    sums, greedy = [], []
    for request in requests:
        inputs = torch.tensor([[*request.context, *request.answer]])[:, :-1]
        logits = model(inputs).logits[0, -len(request.answer) :].float()
        answer = torch.tensor(request.answer)
        sums.append(torch.log_softmax(logits, -1).gather(1, answer[:, None]).sum().item())
        greedy.append(bool((logits.argmax(-1) == answer).all()))
    return np.array(sums), np.array(greedy)


@pytest.mark.parametrize(
    ("kind", "shares"),
    [(kind, True) for kind in SHARING.values()] + [(kind, False) for kind in ALONE.values()],
    ids=[*SHARING, *ALONE],
)
@torch.inference_mode()
def test_every_kind_of_model_gives_what_it_gives_one_by_one(kind, shares):
    model, requests = pico(*kind).eval(), drawn(1)
    assert can_share(model) == shares
    sums, greedy = plainly(model, requests)
    best = Request(requests[0].context, (int(model(torch.tensor([requests[0].context])).logits[0, -1].argmax()),))
    for share in {False, shares}:
        for size in (1, 3, 16):
            found = score(model, make_batches([*requests, best], size, "cpu", share), len(requests) + 1)
            np.testing.assert_allclose(found.log_probability[:-1], sums, atol=2e-4)
            assert (found.greedy[:-1] == greedy).all()
            assert found.greedy[-1]


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=15, deadline=None)
@torch.inference_mode()
def test_batches_change_nothing(seed, size):
    model, requests = pico(LlamaForCausalLM, LLAMA).eval(), drawn(seed, contexts=3)
    sums, _ = plainly(model, requests)
    for share in (False, True):
        found = score(model, make_batches(requests, size, "cpu", share), len(requests))
        np.testing.assert_allclose(found.log_probability, sums, atol=2e-4)


def test_a_context_is_run_once_for_all_its_answers():
    context = tuple(range(3, 23))
    requests = [Request(context, (30 + i, 31 + i, 32 + i)) for i in range(4)]
    tokens = {
        share: sum(each.inputs.numel() for batch in make_batches(requests, 8, "cpu", share) for each in passes(batch))
        for share in (False, True)
    }
    assert tokens == {False: 4 * 22, True: 20 + 4 * 2}
    (batch,) = make_batches([Request(context, (i,)) for i in range(4)], 8, "cpu")
    assert [each.inputs.shape for each in passes(batch)] == [(1, 20)]  # all four answers are in the logits of one token


def passes(batch):
    return [batch.first] if batch.rest is None else [batch.first, batch.rest]


def test_batches_depend_on_the_requests_and_begin_with_the_longest():
    requests = drawn(2)
    lengths = [max(each.inputs.shape[1] for each in passes(b)) for b in make_batches(requests, 3, "cpu", share=False)]
    assert lengths == sorted(lengths, reverse=True)
    shuffled = random.Random(1).sample(requests, len(requests))
    for share in (False, True):
        first, second = (
            [each.inputs for b in make_batches(r, 3, "cpu", share) for each in passes(b)] for r in (requests, shuffled)
        )
        assert [each.shape for each in first] == [each.shape for each in second]
        assert all(len(inputs) <= 3 for inputs in first)


def test_half_precision_is_scored_in_float32():
    model, requests = pico(LlamaForCausalLM, LLAMA).eval().to(torch.bfloat16), drawn(3)
    found = score(model, make_batches(requests, 16, "cpu", share=False), len(requests)).log_probability
    sums, _ = plainly(model, requests)
    np.testing.assert_allclose(found, sums, rtol=0.02)  # padding changes sums of half precision
    assert (found != torch.tensor(found).bfloat16().double().numpy()).any()


def test_gradients_are_those_of_the_plain_way():
    requests = drawn(4)
    grads = []
    for share in (None, False, True):
        model = pico(LlamaForCausalLM, LLAMA).eval().double()
        if share is None:
            total = torch.zeros((), dtype=torch.float64)
            for request in requests:
                logits = model(torch.tensor([[*request.context, *request.answer]])[:, :-1]).logits[0]
                log_p = torch.log_softmax(logits[-len(request.answer) :], -1)
                total = total + log_p.gather(1, torch.tensor(request.answer)[:, None]).sum()
        else:
            total = log_probabilities(model, make_batches(requests, 5, "cpu", share), len(requests))[0].sum()
        total.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for one in grads[1:]:
        for got, wanted in zip(one, grads[0], strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)  # rotations are float32


@pytest.mark.parametrize("length", [1, 4, 5, 100])
@pytest.mark.parametrize("n", [1, 4, 7, 13])
def test_windows_are_those_of_lm_eval(n, length):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens = list(range(10, 10 + n))
    theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, 2, length, 1))
    ours = windows(tokens, 2, length)
    assert [(list(r.context), list(r.answer)) for r in ours] == [tuple(map(list, pair)) for pair in theirs]


def test_a_long_context_loses_its_beginning():
    assert clipped([1, 2, 3, 4], [5, 6], 10) == Request((1, 2, 3, 4), (5, 6))
    assert clipped([1, 2, 3, 4], [5, 6], 3) == Request((3, 4), (5, 6))
    with pytest.raises(ConfigError, match="answer of 2 tokens is longer than the 1 that the model takes"):
        clipped([1, 2], [5, 6], 1)
