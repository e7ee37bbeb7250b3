"""Guards dataset/photos.py: every format gives the same pixels, and a bad file one sentence."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from photo_files import COLOURS, RAMP, one_sentence, png
from PIL import Image

from anomalydiffusion_core.dataset.photos import (
    list_images,
    photo_of,
    pixel_hash,
    read_mask,
    read_photo,
    write_png,
)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG"])
@pytest.mark.parametrize(("pixels", "gray"), [(RAMP, True), (COLOURS, False)])
def test_lossless_formats_give_the_exact_pixels(
    tmp_path: Path, suffix: str, pixels: np.ndarray, gray: bool
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    photo = read_photo(path)
    assert photo.gray is gray and photo.size == (6, 9)
    np.testing.assert_array_equal(photo.pixels, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_formats_give_nearly_the_pixels(tmp_path: Path, suffix: str) -> None:
    smooth = np.tile(np.linspace(20, 220, 64).astype(np.uint8), (48, 1))
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.stack([smooth] * 3, -1)).save(path, quality=95)
    assert np.abs(read_photo(path).pixels.astype(int) - smooth[..., None]).max() <= 6


def test_a_gray_jpeg_stays_one_channel(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.gray and photo.image().mode == "L"


def test_the_hash_of_an_8_bit_photo_is_of_its_size_and_colours(tmp_path: Path) -> None:
    for samples in (RAMP, COLOURS):
        colours = samples if samples.ndim == 3 else np.repeat(samples[..., None], 3, -1)
        expected = hashlib.sha256(b"(6, 9)" + colours.tobytes()).hexdigest()
        assert pixel_hash(photo_of(samples)) == expected


def test_two_coloured_bits_are_black_and_white(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 1, 1, 0, bytes([0b10100001])))
    photo = read_photo(tmp_path / "a.png")
    assert photo.gray and photo.pixels[0, :, 0].tolist() == [255, 0, 255, 0, 0, 0, 0, 255]


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = read_photo(tmp_path / "a.png").pixels[0]
    assert pixels[0].tolist() == [200, 100, 50] and pixels[1].tolist() == [0, 0, 0]
    np.testing.assert_allclose(pixels[2], np.array([200, 100, 50]) * 128 / 255, atol=1)


def test_gray_with_transparency_stays_gray(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 4, bytes([90, 255, 90, 0])))
    photo = read_photo(tmp_path / "a.png")
    assert photo.gray and photo.pixels[0, :, 0].tolist() == [90, 0]


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 250, 7])
    image.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.tolist() == [[[10, 20, 30], [200, 0, 0], [0, 250, 7]]] and not photo.gray


# EXIF orientation -> how the upright picture follows from the stored one (TIFF 6.0, tag 274)
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photos_and_masks_are_turned_upright_as_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    mask = np.zeros((6, 9), np.uint8)
    mask[0, :4] = 255
    Image.fromarray(mask).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels, UPRIGHT[orientation](COLOURS))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), UPRIGHT[orientation](mask) > 0)


def test_a_tensor_runs_from_minus_one_to_one_with_channels_first(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[0, 255, 51]]], np.uint8)).save(tmp_path / "a.png")
    tensor = read_photo(tmp_path / "a.png").tensor()
    assert tensor.shape == (3, 1, 1)
    np.testing.assert_allclose(tensor.flatten(), [-1, 1, -0.6], atol=1e-6)


shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))
pictures = st.one_of(
    shapes.flatmap(lambda s: st_numpy.arrays(np.uint8, s)),
    shapes.flatmap(lambda s: st_numpy.arrays(np.uint8, (*s, 3))),
)


@given(pictures)
@settings(max_examples=60, deadline=None)
def test_any_picture_written_as_png_reads_back_exactly(pixels: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "a.png"
        write_png(Image.fromarray(pixels), path)
        photo = read_photo(path)
        assert photo.gray is (pixels.ndim == 2) and [p.name for p in path.parent.iterdir()] == ["a.png"]
        np.testing.assert_array_equal(np.asarray(photo.image()), pixels)


marks = shapes.flatmap(lambda s: st_numpy.arrays(np.bool_, s)).filter(lambda m: m.any() and not m.all())


@given(marks)
@settings(max_examples=40, deadline=None)
def test_masks_of_0_and_1_and_of_0_and_255_and_of_16_bit_are_the_same(mask: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, white in enumerate(
            (np.uint8(1), np.uint8(255), np.uint16(1), np.uint16(255), np.uint16(65535))
        ):
            path = Path(folder) / f"{number}.png"
            Image.fromarray(mask * white).save(path)
            np.testing.assert_array_equal(read_mask(path, mask.shape), mask)
        Image.fromarray(mask).save(Path(folder) / "bits.png")
        np.testing.assert_array_equal(read_mask(Path(folder) / "bits.png"), mask)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (128, 0, 0), (255, 255, 0)])
def test_marks_of_any_colour_count(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1, 2] = colour
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert np.argwhere(read_mask(tmp_path / "m.png")).tolist() == [[1, 2]]


def test_a_jpeg_mask_is_cut_at_half_range(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[5:22, 9:27] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=75)
    assert len(np.unique(Image.open(tmp_path / "m.jpg"))) > 2  # it does have ringing
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg"), mask > 0)


@given(
    st.binary(min_size=0, max_size=80), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"RIFF"])
)
@settings(max_examples=150, deadline=None)
def test_random_bytes_give_one_sentence_that_names_the_file(noise: bytes, start: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(start + noise)
        for read in (read_photo, read_mask):
            with pytest.raises(ValueError) as error:
                read(path)
            one_sentence(error, path)


@given(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP"]), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_picture_is_read_or_refused_in_one_sentence(kind: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(content)
        try:
            assert read_photo(path).pixels.dtype == np.uint8
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_a_truncated_picture_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError) as error:
        read_photo(path)
    assert "cannot be read" in one_sentence(error, path)


def test_empty_absent_and_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("not a picture")
    for name, what in {
        "empty.png": "0 bytes",
        "absent.png": "does not exist",
        "folder.png": "cannot be read",
        "text.png": "no known picture format",
    }.items():
        for read, noun in ((read_photo, "Image "), (read_mask, "Mask ")):
            with pytest.raises(ValueError, match=what) as error:
                read(tmp_path / name)
            assert one_sentence(error, tmp_path / name).startswith(noun)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    for read in (read_photo, read_mask):
        with pytest.raises(ValueError, match="floating-point") as error:
            read(tmp_path / "a.tif")
        one_sentence(error, tmp_path / "a.tif")


def test_unusable_masks_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    def save(name: str, values: np.ndarray) -> Path:
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / name)
        return tmp_path / name

    some = np.zeros((4, 6))
    some[1, 1] = 255
    cases = [
        (save("black.png", np.zeros((4, 6))), None, "nothing is marked"),
        (save("white.png", np.full((4, 6), 255)), None, "everything is marked"),
        (save("ones.png", np.ones((4, 6))), None, "everything is marked"),
        (save("other.png", some), (6, 4), "is 6x4 but its image is 4x6"),
    ]
    for path, size, what in cases:
        with pytest.raises(ValueError, match=what) as error:
            read_mask(path, size)
        one_sentence(error, path)


def test_listing_takes_pictures_only_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.tiff", "d.txt", ".e.png", "f.png.tmp", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]
    assert list_images(tmp_path / "absent") == []


def test_writing_never_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError) as error:
        write_png(Image.fromarray(RAMP), path)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])  # as Linux and Windows say it
def test_a_drive_without_hard_links_serves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_png(Image.fromarray(RAMP), tmp_path / "a.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels[..., 0], RAMP)
    with pytest.raises(FileExistsError):
        write_png(Image.fromarray(RAMP), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_png(Image.fromarray(RAMP), tmp_path / "a.png")
    assert error.value.filename == str(tmp_path / "a.png") and list(tmp_path.iterdir()) == []
