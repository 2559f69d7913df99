"""Tuning encoders against frozen heads; test_pico.py has the tests on texts."""

import numpy as np
import pytest
import torch

from evomerge.demo.finetune import encode_images, fine_tune_images, image_features, predict_images
from evomerge.fitness.heads import FrozenHead
from evomerge.fitness.items import make_image_item
from evomerge.runs.suite import write_head
from tests.kit.vision import dinov2, pixels, png, processor

LABELS = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]


@pytest.fixture
def images():
    return [png(i) for i in range(len(LABELS))]


@pytest.fixture
def head(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 32, generator=generator), torch.randn(3, generator=generator)
    write_head(tmp_path / "head", 0.3 * weight, bias, pooling="cls_mean", normalise=False, scale=1.0)
    return FrozenHead(tmp_path / "head")


def test_images_are_encoded_as_by_the_fitness(images):
    encoded = encode_images(processor(), [make_image_item(image) for image in images])
    torch.testing.assert_close(encoded, torch.cat([pixels(image) for image in images]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pooling", "width"), [("cls_mean", 32), ("mean", 16)])
def test_features_are_what_a_head_sees(images, tmp_path, pooling, width):
    model, encoded = dinov2(), torch.cat([pixels(image) for image in images])
    features = image_features(model, encoded, pooling, batch=4)
    assert features.shape == (len(images), width)
    assert not features.requires_grad
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    write_head(tmp_path / "probe", weight, torch.ones(3), pooling=pooling, normalise=False, scale=2.0)
    with torch.no_grad():
        logits = FrozenHead(tmp_path / "probe").logits(model(encoded), None, torch.arange(len(images)))
    torch.testing.assert_close(logits, 2 * features @ weight.T + 1, atol=1e-3, rtol=1e-4)
    predicted = predict_images(model, encoded, FrozenHead(tmp_path / "probe"), batch=3)
    np.testing.assert_array_equal(predicted, logits.argmax(-1).numpy())


def test_a_tuned_model_knows_its_images_and_keeps_its_embeddings(images, head):
    encoded = torch.cat([pixels(image) for image in images])
    models = [dinov2(), dinov2()]
    before = {name: tensor.clone() for name, tensor in models[0].state_dict().items()}
    state, steps = torch.get_rng_state(), []
    for model in models:
        fine_tune_images(
            model, encoded, LABELS, head, steps=40, lr=1e-2, seed=1, batch=12, on_step=lambda: steps.append(1)
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert len(steps) == 80
    assert (predict_images(models[0], encoded, head) == np.array(LABELS)).mean() > 0.9
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name])
        assert torch.equal(tensor, before[name]) == name.startswith("embeddings")
    assert not any(parameter.requires_grad for parameter in models[0].parameters())
