"""PNG files: the same pixels come back, equal input gives equal bytes, and no reader sees half a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from gtr_pack.gtr_core.drawing.png import encode_png, write_png
from gtr_pack.gtr_core.errors import GtRError
from PIL import Image


def noise(height: int = 21, width: int = 34) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("image", [noise(), noise(1, 1), noise()[::2, ::-1], noise().transpose(1, 0, 2)])
def test_the_pixels_come_back(image: np.ndarray) -> None:
    with Image.open(io.BytesIO(encode_png(image))) as found:
        assert found.format == "PNG" and found.mode == "RGB"
        assert np.array_equal(np.asarray(found), image)


def test_equal_input_gives_equal_bytes() -> None:
    text = {"prompt": "a", "seed": "1"}
    assert encode_png(noise(), text) == encode_png(noise().copy(), dict(text))
    assert encode_png(noise()) != encode_png(noise(), text)


def test_text_is_kept_as_metadata_in_any_language() -> None:
    text = {"GtR": '{"seed": 7}', "label": "鸟 é"}
    with Image.open(io.BytesIO(encode_png(noise(), text))) as found:
        assert found.text == text
    with Image.open(io.BytesIO(encode_png(noise()))) as found:
        assert found.text == {}


@pytest.mark.parametrize(
    "image", [noise().astype(float), noise()[..., 0], noise()[..., :2], noise()[:0], np.zeros((4, 4, 4), np.uint8)]
)
def test_other_arrays_are_refused_in_one_line(image: np.ndarray) -> None:
    with pytest.raises(GtRError, match=r"expected \(height, width, 3\) uint8") as caught:
        encode_png(image)
    assert "\n" not in str(caught.value)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    write_png(target, noise())
    assert target.read_bytes() == encode_png(noise()) and list(tmp_path.iterdir()) == [target]
    with pytest.raises(GtRError):
        write_png(target, noise()[..., 0])
    with pytest.raises(GtRError, match="cannot write"):
        write_png(tmp_path / "none" / "a.png", noise())
    assert target.read_bytes() == encode_png(noise()) and list(tmp_path.iterdir()) == [target]
