"""Guards dataset/photos.py and deep_png.py: what files of more than 8 bits hold is kept."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_files import RAMP, one_sentence, png
from PIL import Image
from torchvision.io import decode_png

from anomalydiffusion_core.dataset.photos import (
    Photo,
    photo_of,
    read_mask,
    read_photo,
)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_keeps_its_high_byte(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256, 32768], [65535, 4095, 513, 40000]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    photo = read_photo(tmp_path / f"a.{suffix}")
    assert photo.gray
    assert photo.pixels[..., 0].tolist() == [[0, 0, 1, 128], [255, 15, 2, 156]]


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    rows = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFF00, 0x00FF, 0x8000)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, rows))
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.tolist() == [[[0x12, 0x56, 0x9A], [0xFF, 0x00, 0x80]]] and not photo.gray


@pytest.mark.parametrize(
    ("highest", "white"),
    [(200, 255), (256, 1023), (1023, 1023), (4095, 4095), (4096, 16383), (16384, 65535), (65535, 65535)],
)
def test_what_a_camera_of_fewer_bits_wrote_is_seen_at_full_brightness(
    tmp_path: Path, highest: int, white: int
) -> None:
    values = np.array([[0, highest // 3, highest]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.white == white and photo.gray
    expected = [value * 256 // (white + 1) for value in (0, highest // 3, highest)]
    assert photo.pixels[0, :, 0].tolist() == expected
    np.testing.assert_allclose(photo.levels()[0, :, 2], values[0].astype(float) * 255 / white, rtol=1e-6)


def test_a_dark_photo_is_seen_as_a_brighter_one_of_its_kind_when_that_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 900]], np.uint16)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").pixels[0, 1, 0] == 225  # 900 / 4
    assert read_photo(tmp_path / "a.png", 4095).pixels[0, 1, 0] == 56  # 900 / 16
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "b.png")
    assert read_photo(tmp_path / "b.png", 4095).pixels[0, 1, 0] == 255


DEEP = np.random.default_rng(7).integers(0, 65536, (37, 53), dtype=np.uint16)
DEPTHS = {
    "8-bit gray": (DEEP >> 8).astype(np.uint8),
    "8-bit colour": np.stack([DEEP >> 8, DEEP & 255, DEEP >> 4 & 255], -1).astype(np.uint8),
    "16-bit gray": DEEP,
    "12-bit gray": DEEP >> 4,
    "16-bit colour": np.stack([DEEP, DEEP[::-1], 65535 - DEEP], -1),
    "10-bit colour": np.stack([DEEP, DEEP[::-1], 65535 - DEEP], -1) >> 6,
}


@pytest.mark.parametrize("samples", DEPTHS.values(), ids=DEPTHS)
def test_a_photo_of_any_depth_is_written_and_read_without_loss(tmp_path: Path, samples: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(photo_of(samples).png())
    photo = read_photo(path)
    assert photo.size == (37, 53) and photo.samples.dtype == samples.dtype
    assert photo.gray is (samples.ndim == 2) and (photo.deep is None) is (samples.dtype == np.uint8)
    np.testing.assert_array_equal(photo.samples, samples)
    decoded = decode_png(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)).numpy()
    np.testing.assert_array_equal(decoded.transpose(1, 2, 0), samples.reshape(37, 53, -1))
    with Image.open(path) as image:  # of colours it sees the high bytes
        seen = samples if samples.ndim == 2 or samples.dtype == np.uint8 else samples >> 8
        np.testing.assert_array_equal(np.asarray(image), seen)


@pytest.mark.parametrize("kind", ["16-bit gray", "16-bit colour"])
def test_deep_photos_are_turned_upright_too(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    if kind == "16-bit gray":
        Image.fromarray(DEEP).save(tmp_path / "a.png", exif=exif)
    else:
        content = photo_of(DEPTHS[kind]).png()
        body = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.samples, np.rot90(DEPTHS[kind], -1))
    assert photo.pixels.shape == (53, 37, 3)


def test_sixteen_bit_tiffs_of_either_byte_order_keep_their_values(tmp_path: Path) -> None:
    def tiff(order: str) -> bytes:
        """The smallest baseline TIFF of DEEP: header, one directory of shorts and longs, one strip."""
        data = DEEP.astype(f"{order}u2").tobytes()
        entries = [(256, 53), (257, 37), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 8 * 12 + 4)]
        entries += [(277, 1), (279, len(data))]
        directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
        start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
        return start + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + data

    for order in "<>":
        (tmp_path / "a.tif").write_bytes(tiff(order))
        photo = read_photo(tmp_path / "a.tif")
        assert photo.gray and photo.samples.dtype == np.dtype(np.uint16)
        np.testing.assert_array_equal(photo.samples, DEEP)


def test_a_damaged_deep_png_is_refused_in_one_sentence(tmp_path: Path) -> None:
    content = photo_of(DEPTHS["16-bit colour"]).png()
    path = tmp_path / "a.png"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_photo(path)
    one_sentence(error, path)


@pytest.mark.parametrize("samples", DEPTHS.values(), ids=DEPTHS)
def test_outside_the_mask_a_photo_keeps_every_bit_and_inside_it_is_blended_at_its_depth(
    samples: np.ndarray,
) -> None:
    photo, box = photo_of(samples), np.s_[4:24, 7:40]
    mask = np.zeros((20, 33), bool)
    mask[3:10, 5:9] = True
    generated = np.random.default_rng(1).uniform(0, 255, (20, 33, 3)).astype(np.float32)
    made = photo.pasted(generated, mask, box, feather=1.0)
    assert made.white == photo.white and made.gray == photo.gray and made.samples.dtype == samples.dtype
    expected = samples.astype(object)
    for y, x in np.argwhere(mask):
        rim = y in (3, 9) or x in (5, 8)
        new = generated[y, x].astype(float)
        new = new.mean() if samples.ndim == 2 else new
        old = samples[4 + y, 7 + x].astype(float)
        expected[4 + y, 7 + x] = np.floor(old + (0.5 if rim else 1) * (new * photo.white / 255 - old) + 0.5)
    difference = np.abs(made.samples.astype(float) - expected.astype(float))
    inside = np.zeros(photo.size, bool)
    inside[box] = mask
    assert not difference[~inside].any()
    assert difference.max() <= 1  # halves may round either way
    assert (difference > 0).mean() < 0.002
    np.testing.assert_array_equal(photo.samples, samples)


def test_what_is_laid_in_unchanged_leaves_every_bit_of_a_deep_photo() -> None:
    for samples in (DEEP, DEEP >> 4, DEPTHS["16-bit colour"]):
        photo = photo_of(samples)
        made = photo.pasted(photo.levels(), np.ones(photo.size, bool), feather=0)
        np.testing.assert_array_equal(made.samples, samples)


def test_a_window_is_the_part_of_a_photo_at_its_depth() -> None:
    for samples in DEPTHS.values():
        part = photo_of(samples).window(np.s_[3:9, 10:30])
        np.testing.assert_array_equal(part.samples, samples[3:9, 10:30])
        assert part.size == (6, 20) and part.white == photo_of(samples).white
        np.testing.assert_array_equal(part.tensor(), photo_of(samples).tensor()[:, 3:9, 10:30])


def test_a_gray_photo_takes_no_memory_for_colours() -> None:
    gray = Photo(photo_of(RAMP).pixels, gray=True)
    assert np.shares_memory(gray.pixels, RAMP) and np.shares_memory(gray.samples, RAMP)
    assert gray.image().mode == "L" and photo_of(DEEP).image().mode == "I;16"


def test_masks_of_12_bits_are_seen(tmp_path: Path) -> None:
    mask = np.zeros((5, 8), np.uint16)
    mask[1:3, 2:6] = 4095
    Image.fromarray(mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask > 0)
