"""A pico DINOv2 with experts and images, for the tests of everything that takes pixels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from evomerge.demo.finetune import save_model
from evomerge.fitness.items import make_image_item, write_items

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
CLASSES = {"digits": 3, "letters": 4}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def png(seed: int, size: tuple[int, int] = (30, 33), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """The file of a random image."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, len(mode)), dtype=np.uint8).squeeze()
    stream = io.BytesIO()
    Image.fromarray(pixels, mode if len(mode) > 1 else None).save(stream, kind)
    return stream.getvalue()


def processor() -> BitImageProcessorPil:
    return BitImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=MEAN, image_std=STD
    )


def dinov2(cls=Dinov2Model, seed: int = 0, **config):
    """A model whose parameters are all drawn from their own generator."""
    with torch.random.fork_rng():
        model = cls(Dinov2Config(**SIZES, **config)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = 1.0 if "norm" in name or "lambda" in name else 0.3
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def tuned(model, seed: int, scale: float = 0.1):
    """Perturb all but the embeddings, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "embeddings" not in name:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model


def save(model, path: Path, legacy: bool) -> None:
    """Save under the names that transformers writes (those of earlier years), or under those of the live model."""
    if legacy:
        model.save_pretrained(path)
        processor().save_pretrained(path)
    else:
        save_model(model, processor(), path)


def save_family(path: Path, legacy: dict[str, bool]) -> None:
    """Write `base`, and of each task an expert with its own head, `<task>.jsonl` and the PNG files it names.

    Args:
        path: the directory.
        legacy: whether `base`, `digits` and `letters` are saved under the names of earlier years.
    """
    base = dinov2()
    save(base, path / "base", legacy["base"])
    for k, (name, classes) in enumerate(CLASSES.items(), 1):
        expert = dinov2(Dinov2ForImageClassification, seed=k, num_labels=classes)
        expert.dinov2.load_state_dict(base.state_dict())
        save(tuned(expert, seed=k), path / name, legacy[name])
        images = [png(1000 * k + i) for i in range(45)]
        if name == "digits":
            (path / "png").mkdir()
            for i, image in enumerate(images):
                (path / "png" / f"{i}.png").write_bytes(image)
            rows = [{"image": f"png/{i}.png", "label": i % classes} for i in range(len(images))]
            (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            write_items(path / f"{name}.jsonl", [make_image_item(image, i % classes) for i, image in enumerate(images)])


def pixels(image: bytes) -> torch.Tensor:
    """What the processor makes of an image, (1, 3, 28, 28), written down anew: resize, crop, scale, normalise."""
    rgb = Image.open(io.BytesIO(image)).convert("RGB")
    factor = 28 / min(rgb.size)
    rgb = rgb.resize((int(rgb.width * factor), int(rgb.height * factor)), Image.Resampling.BICUBIC)
    left, top = (rgb.width - 28) // 2, (rgb.height - 28) // 2
    array = np.asarray(rgb.crop((left, top, left + 28, top + 28)), dtype=np.float32) / 255
    array = (array - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(array).permute(2, 0, 1)[None].float()
