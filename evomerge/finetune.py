"""Fine-tuning an encoder against a frozen head: how suites get their experts.

In: a BERT-like encoder, its tokenizer, texts with labels, a head (C, d) of class-name embeddings. Out: the encoder,
tuned in place; embeddings stay as they are, so their task vectors are exactly zero. Logits = 20 * cosine, the frozen
text classifier of CLIP (Radford et al. 2021) with a text encoder on both sides. No global random state: dropout is
off, the order of the data comes from `np.random.default_rng`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from evomerge.suite import SCALE

WARMUP = 0.1  # share of the steps in which the learning rate rises; then it falls linearly to zero


def embed(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> torch.Tensor:
    """Embed texts: last hidden states, averaged over each text's tokens, of unit norm.

    Returns:
        (N, d); carries gradients unless the caller switched them off.
    """
    inputs = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=True, return_tensors="pt")
    hidden = model(**inputs).last_hidden_state  # (N, T, d)
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@torch.no_grad()
def predict(model: Any, tokenizer: Any, texts: Sequence[str], head: torch.Tensor, max_tokens: int) -> np.ndarray:
    """Predict the class of each text (N,), in batches of similar length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    predictions = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(order), 64):
        batch = order[start : start + 64]
        cosines = embed(model, tokenizer, [texts[i] for i in batch], max_tokens) @ head.T
        predictions[batch] = cosines.argmax(-1).numpy()
    return predictions


def fine_tune(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    head: torch.Tensor,
    *,
    steps: int,
    lr: float,
    seed: int,
    batch: int = 32,
    max_tokens: int = 48,
    on_step: Callable[[], object] = lambda: None,
) -> None:
    """Tune the encoder in place, classes balanced, embeddings frozen.

    Args:
        model: a BERT-like encoder with `embeddings`.
        tokenizer: of the model.
        texts: N training texts.
        labels: (N,) classes; each batch draws a class first, then one of its texts.
        head: (C, d) rows of unit norm.
        steps: optimiser steps.
        lr: highest learning rate of AdamW.
        seed: of the order of the data; the same seed on the same machine gives the same weights.
        batch: texts a step.
        max_tokens: longer texts are cut.
        on_step: called after each step.
    """
    model.eval()  # dropout would draw from torch's global generator
    model.requires_grad_(True)
    model.embeddings.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    rng = np.random.default_rng(seed)
    targets = np.asarray(labels)
    members = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    for _ in range(steps):
        drawn = np.array([rng.choice(members[rng.integers(len(members))]) for _ in range(batch)])
        logits = SCALE * embed(model, tokenizer, [texts[int(i)] for i in drawn], max_tokens) @ head.T
        optimiser.zero_grad()
        functional.cross_entropy(logits, torch.from_numpy(targets[drawn])).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        on_step()
    model.requires_grad_(False)


def save_model(model: Any, tokenizer: Any, path: Path) -> None:
    """Save an ordinary Hugging Face directory (weights, config, tokenizer), without the library's progress bar."""
    path.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    save_file(
        {name: t.contiguous() for name, t in model.state_dict().items()}, path / "model.safetensors", {"format": "pt"}
    )
