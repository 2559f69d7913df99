"""Fine-tuning an encoder against a frozen head: how suites get their experts.

In: an encoder with `embeddings`, like BERT or DINOv2, items with labels, a head. Out: the encoder, tuned in place;
embeddings (of words; of patches and positions) stay as they are, so their task vectors are exactly zero. Texts: logits
= 20 * cosine with class-name embeddings (C, d), the frozen text classifier of CLIP (Radford et al. 2021) with a text
encoder on both sides. Images: the head is a file, such as a linear probe of the base, and logits are exactly those that
the fitness takes of it. No global random state: dropout is off, the order of the data comes from
`np.random.default_rng`.

    pixels = encode_images(processor, items)    # once: (N, 3, H, W)
    features = image_features(base, pixels)     # fit a probe on them; suite.write_head(path, weight, bias, ...)
    fine_tune_images(model, pixels, labels, FrozenHead(path), steps=50, lr=3e-5, seed=0)
    predict_images(model, pixels, FrozenHead(path))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from evomerge.fitness.encoding import Images
from evomerge.fitness.heads import SCALE, FrozenHead, pool
from evomerge.fitness.items import Item

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

    def logits(drawn: np.ndarray) -> torch.Tensor:
        return SCALE * embed(model, tokenizer, [texts[int(i)] for i in drawn], max_tokens) @ head.T

    _tune(model, logits, labels, steps=steps, lr=lr, seed=seed, batch=batch, on_step=on_step)


def encode_images(processor: Any, items: Sequence[Item]) -> torch.Tensor:
    """Decode and scale images as the fitness does: pixels (N, 3, H, W), float32.

    Raises:
        ConfigError: the processor gives images of several sizes.
        SuiteError: an image cannot be decoded.
    """
    return Images(processor, room=0).collate(items)["pixel_values"]


@torch.no_grad()
def image_features(model: Any, pixels: torch.Tensor, pooling: str = "cls_mean", batch: int = 64) -> torch.Tensor:
    """Return what a frozen head sees of images, not normalised: (N, 2 d) for `cls_mean`, (N, d) for `mean`."""
    return torch.cat([pool(model(pixel_values=p).last_hidden_state, None, pooling) for p in pixels.split(batch)])


@torch.no_grad()
def predict_images(model: Any, pixels: torch.Tensor, head: FrozenHead, batch: int = 64) -> np.ndarray:
    """Predict the class of each image (N,)."""
    return torch.cat([_image_logits(model, p, head).argmax(-1) for p in pixels.split(batch)]).numpy()


def fine_tune_images(
    model: Any,
    pixels: torch.Tensor,
    labels: Sequence[int],
    head: FrozenHead,
    *,
    steps: int,
    lr: float,
    seed: int,
    batch: int = 32,
    on_step: Callable[[], object] = lambda: None,
) -> None:
    """Tune a vision encoder in place, classes balanced, embeddings of patches and positions frozen.

    Args:
        model: a DINOv2-like encoder with `embeddings`, without a head (AutoModel).
        pixels: (N, 3, H, W) training images, as `encode_images` gives them.
        labels: (N,) classes; each batch draws a class first, then one of its images.
        head: of the task.
        steps: optimiser steps.
        lr: highest learning rate of AdamW.
        seed: of the order of the data; the same seed on the same machine gives the same weights.
        batch: images a step.
        on_step: called after each step.
    """

    def logits(drawn: np.ndarray) -> torch.Tensor:
        return _image_logits(model, pixels[torch.from_numpy(drawn)], head)

    _tune(model, logits, labels, steps=steps, lr=lr, seed=seed, batch=batch, on_step=on_step)


def _image_logits(model: Any, pixels: torch.Tensor, head: FrozenHead) -> torch.Tensor:
    return head.logits(model(pixel_values=pixels), None, torch.arange(len(pixels)))


def _tune(
    model: Any,
    logits: Callable[[np.ndarray], torch.Tensor],
    labels: Sequence[int],
    *,
    steps: int,
    lr: float,
    seed: int,
    batch: int,
    on_step: Callable[[], object],
) -> None:
    """Tune all but the embeddings by cross-entropy: AdamW, warm-up and linear decay, class-balanced batches.

    Args:
        model: tuned in place; afterwards its parameters want no gradients.
        logits: from the numbers of the drawn items (batch,) to logits (batch, C).
        labels: (N,) classes.
        steps: optimiser steps.
        lr: highest learning rate.
        seed: of the order of the data.
        batch: items a step.
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
        loss = functional.cross_entropy(logits(drawn), torch.from_numpy(targets[drawn]))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        on_step()
    model.requires_grad_(False)


def save_model(model: Any, processor: Any, path: Path) -> None:
    """Save an ordinary Hugging Face directory (weights, config, tokenizer or image processor), without the library's
    progress bar.
    """
    path.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(path)
    processor.save_pretrained(path)
    save_file(
        {name: t.contiguous() for name, t in model.state_dict().items()}, path / "model.safetensors", {"format": "pt"}
    )
