# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from tests.kit.lm_packages import write_gguf

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from suite_builder import lm, lm_train
from suite_builder.lm_documents import encode
from suite_builder.lm_tasks import IN_BRIEF, IN_WORDS, TEXT

DOCUMENTS = {
    IN_WORDS: {"passage": "It rains.", "question": "Why?", "choices": ["clouds", "a dance"], "label": 1},
    IN_BRIEF: {"question": "Where?", "choices": ["a", "b", "c", "d", "e"], "label": 4},
    TEXT: {"text": "Äpfel und Birnen"},
}
QUESTIONS = [
    {"passage": f"situation {i}", "question": "Why?", "choices": ["red", "blue"], "label": i % 2} for i in range(30)
]
TEXTS = [{"text": f"Wort {i} ist ein Wort wie jedes andere"} for i in range(30)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    write_gguf(path / "pico.gguf")
    lm.read_gguf(path, path / "base")
    return path / "base"


def test_the_loss_is_that_of_transformers_on_the_tokens_of_the_right_answer(base):
    model, tokenizer = lm.load(base)
    asked = [encode(tokenizer, form, document) for form, document in DOCUMENTS.items()]
    rows = [one.prompt + one.answers[one.label] for one in asked]
    inputs, labels = torch.zeros(len(rows), 90, dtype=torch.long), torch.full((len(rows), 90), -100)
    for i, (row, one) in enumerate(zip(rows, asked, strict=True)):
        inputs[i, : len(row)] = torch.tensor(row)
        labels[i, len(one.prompt) : len(row)] = torch.tensor(row[len(one.prompt) :])
    logits = model(input_ids=inputs).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(lm_train.answer_loss(model, asked, 96), expected)
    cut = lm_train.answer_loss(model, asked[2:], 5)
    four = functional.cross_entropy(logits[2, :4], inputs[2, 1:5])
    torch.testing.assert_close(cut, four)


def test_training_moves_all_but_the_embeddings_and_is_fixed_by_its_seed(base):
    weights, steps = {}, []
    before = load_file(base / "model.safetensors")
    for name, seed in {"one": 0, "same": 0, "other": 1}.items():
        model, tokenizer = lm.load(base)
        asked = [encode(tokenizer, IN_WORDS, document) for document in QUESTIONS]
        loss = lm_train.answer_loss(model, asked, 96).item()
        state = torch.random.get_rng_state()
        lm_train.fine_tune(model, asked, steps=8, lr=2e-3, seed=seed, batch=7, on_step=lambda: steps.append(1))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert lm_train.answer_loss(model, asked, 96).item() < loss - 0.1
        assert not any(parameter.requires_grad for parameter in model.parameters())
        weights[name] = dict(model.named_parameters())
    assert len(steps) == 24
    for key, tensor in before.items():
        assert torch.equal(weights["one"][key], weights["same"][key])
        frozen = key == "model.embed_tokens.weight"
        assert torch.equal(weights["one"][key], tensor) == frozen, key
        assert torch.equal(weights["one"][key], weights["other"][key]) == frozen, key


def test_training_goes_on_from_where_it_was_interrupted(base, tmp_path):
    state, found = tmp_path / "state.safetensors", {}
    for name in ("whole", "first", "second"):
        model, tokenizer = lm.load(base)
        asked = [encode(tokenizer, TEXT, document) for document in TEXTS]
        seen = []

        def step(seen=seen, stop=7 if name == "first" else 99):
            seen.append(1)
            if len(seen) == stop:
                raise KeyboardInterrupt

        options: dict[str, Any] = {"state": None if name == "whole" else state, "every": 3, "on_step": step}
        with pytest.raises(KeyboardInterrupt) if name == "first" else nullcontext():
            lm_train.fine_tune(model, asked, steps=10, lr=1e-3, seed=0, batch=12, **options)
        found[name] = dict(model.named_parameters())
        assert len(seen) == (7 if name == "first" else 10)
    for key, tensor in found["whole"].items():
        assert torch.equal(found["second"][key], tensor), key
