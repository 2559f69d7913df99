"""What items become before they reach a model."""

import pytest
import torch

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness import encoding
from evomerge.fitness.encoding import Images, Texts, check_kind, make_encoder
from evomerge.fitness.items import Item, make_image_item, make_item
from tests.kit.vision import pixels, png, processor


class Tokenizer:
    """A token for each letter."""

    pad_token_id, model_max_length = 7, 5

    def __call__(self, texts, truncation, max_length):
        tokens = [[ord(letter) for letter in text][:max_length] for text in texts]
        return {"input_ids": tokens, "attention_mask": [[1] * len(one) for one in tokens]}


class Counting:
    """An image processor that counts the images it is given."""

    def __init__(self, **changes):
        self.processor, self.calls = processor(), 0
        for name, value in changes.items():
            setattr(self.processor, name, value)

    def __call__(self, images, **kwargs):
        self.calls += len(images)
        return self.processor(images=images, **kwargs)


def test_texts_are_padded_and_cut():
    texts = Texts(Tokenizer(), max_length=9)
    encoded = texts.encode([make_item("ab"), make_item("abcdefgh")])
    assert [texts.length(one) for one in encoded] == [2, 5]
    inputs = texts.collate(encoded)
    assert inputs["input_ids"].tolist() == [[97, 98, 7, 7, 7], [97, 98, 99, 100, 101]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5]


@pytest.mark.parametrize(("size", "mode"), [((30, 33), "RGB"), ((28, 28), "L"), ((90, 61), "RGBA")])
def test_pixels_are_those_of_the_processor(size, mode):
    data = png(4, size, mode)
    inputs = Images(processor()).collate([make_image_item(data)])
    assert inputs["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(inputs["pixel_values"], pixels(data), atol=1e-5, rtol=0)


def test_images_are_encoded_once_while_there_is_room():
    items = [make_image_item(png(i), i) for i in range(4)]
    one = 4 * 3 * 28 * 28
    for room, calls in ((10 * one, 4), (2 * one, 4 + 2 * 2), (0, 3 * 4)):
        counting = Counting()
        images = Images(counting, room)
        batches = [images.collate(images.encode(items))["pixel_values"] for _ in range(3)]
        assert counting.calls == calls
        assert all(torch.equal(batch, batches[0]) for batch in batches)
        relabelled = make_image_item(items[0].image, 9)
        assert torch.equal(images.collate([relabelled])["pixel_values"][0], batches[0][0])


def test_images_of_several_sizes_make_no_batch():
    images = Images(Counting(do_center_crop=False))
    items = [make_image_item(png(0, (28, 28))), make_image_item(png(1, (28, 60)))]
    assert images.collate(items[:1])["pixel_values"].shape == (1, 3, 28, 28)
    with pytest.raises(ConfigError, match=r"several sizes, like \(3, 28, 28\) and \(3, 28, 60\), which make no batch"):
        images.collate(items)


def test_an_image_that_cannot_be_decoded_is_named():
    with pytest.raises(SuiteError, match="The image of the item abc is no image that Pillow can read"):
        Images(processor()).collate([Item("abc", "", 0, b"some bytes")])


def test_texts_and_images_do_not_mix():
    texts, images = {"a": [make_item("a")]}, {"b": [make_image_item(png(0))]}
    check_kind(processor(), images)
    check_kind(Tokenizer(), texts)
    with pytest.raises(ConfigError, match=r"task a holds texts, but the base is a model of images: .*needs `image`"):
        check_kind(processor(), texts | images)
    with pytest.raises(ConfigError, match=r"task b holds images, but the base is a model of texts: .*needs `text`"):
        check_kind(Tokenizer(), texts | images)
    assert isinstance(make_encoder(processor(), 8), Images)
    assert isinstance(make_encoder(Tokenizer(), 8), Texts)


def test_room_is_for_thousands_of_large_images():
    assert encoding.ROOM // (4 * 3 * 224 * 224) > 1000


def test_a_text_without_tokens_is_refused():
    """Its features would be a mean over nothing."""
    with pytest.raises(SuiteError, match=r"The text '' has no tokens, so a model says nothing of it: take it out\."):
        Texts(Tokenizer(), max_length=9).encode([make_item("ab"), make_item("")])
