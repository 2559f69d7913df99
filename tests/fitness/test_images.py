import io

import numpy as np
import pytest
from PIL import Image

from evomerge.common.errors import SuiteError
from evomerge.fitness.images import data_uri, decode_image, read_image
from tests.kit.vision import png


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_every_image_becomes_rgb(mode):
    data = png(3, (4, 5), mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert decode_image(data).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


def test_a_photo_is_turned_upright():
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=exif)
    assert decode_image(stream.getvalue()).size == (4, 8)


def test_a_data_uri_is_read_back(tmp_path):
    data = png(1)
    assert data_uri(data).startswith("data:image/png;base64,iVBORw0KGgo")
    assert read_image(data_uri(data), tmp_path) == data


def test_bytes_that_are_no_image():
    for data in (b"", b"some bytes", png(1)[:40]):
        with pytest.raises(SuiteError, match=r"no image that Pillow can read: .*; save it anew as PNG or JPEG"):
            decode_image(data)
