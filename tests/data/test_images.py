"""Image files: values are exact, orientation and modes are handled, hostile files end as one sentence."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from xvision.data.images import box_mask, check_header, fit, fit_mask, image_size, read_image, read_mask
from xvision.errors import DataError
from xvision.models.protocols import InputSpec

GREY = np.random.default_rng(0).integers(0, 256, (12, 20), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)
SPEC = InputSpec(1, 12, 20)
ORIENTED = {
    1: GREY,
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: np.rot90(GREY, -1),
    7: GREY[::-1, ::-1].T,
    8: np.rot90(GREY),
}


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_8_bit_values_are_divided_by_255(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY))
    pixels = read_image(path, SPEC)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[0], GREY.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})])
def test_16_bit_depth_is_kept(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(ramp), **options)
    pixels = read_image(path, InputSpec(1, 256, 256))
    np.testing.assert_array_equal(pixels[0], ramp.astype(np.float32) / np.float32(65535))
    assert len(np.unique(read_image(path, InputSpec(1, 128, 128)))) > 10_000


def test_big_endian_16_bit_tiff(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [65535, 40000, 255]], dtype=np.uint16)
    tags = [(256, 4, 3), (257, 4, 2), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16), (273, 4, 122)]
    tags += [(277, 3, 1 << 16), (278, 4, 2), (279, 4, 12)]
    directory = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"MM\x00*" + struct.pack(">I", 8) + struct.pack(">H", len(tags)) + directory + bytes(4)
    path = tmp_path / "a.tif"
    path.write_bytes(head + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(
        read_image(path, InputSpec(1, 2, 3))[0], values.astype(np.float32) / np.float32(65535)
    )


def test_colour_to_grey_and_grey_to_colour(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    luma = (0.299 * COLOUR[..., 0] + 0.587 * COLOUR[..., 1] + 0.114 * COLOUR[..., 2]) / 255
    np.testing.assert_allclose(read_image(path, SPEC)[0], luma, atol=1e-6)
    np.testing.assert_allclose(read_image(path, InputSpec(3, 12, 20)), np.moveaxis(COLOUR / 255, -1, 0), atol=1e-7)
    grey = saved(tmp_path / "b.png", Image.fromarray(GREY))
    tripled = read_image(grey, InputSpec(3, 12, 20))
    assert (tripled == read_image(grey, SPEC)).all()


def test_palette_bilevel_and_cmyk(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(16)
    np.testing.assert_allclose(
        read_image(saved(tmp_path / "p.png", palette), InputSpec(3, 12, 20)),
        np.moveaxis(np.asarray(palette.convert("RGB")) / 255, -1, 0),
        atol=1e-7,
    )
    bits = Image.fromarray(GREY > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(read_image(saved(tmp_path / "b.png", bits), SPEC)[0], GREY > 127)
    cmyk = Image.new("CMYK", (20, 12), (255, 0, 0, 0))
    cyan = read_image(saved(tmp_path / "c.tif", cmyk), InputSpec(3, 12, 20))
    assert cyan.mean(axis=(1, 2)) == pytest.approx([0.0, 1.0, 1.0])


def test_transparent_pixels_are_laid_on_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.dstack([COLOUR, GREY]), "RGBA")
    expected = np.moveaxis(COLOUR / 255 * (GREY / 255)[..., None], -1, 0)
    np.testing.assert_allclose(read_image(saved(tmp_path / "a.png", image), InputSpec(3, 12, 20)), expected, atol=1e-6)
    palette = Image.new("P", (20, 12), 1)
    palette.putpalette([255, 255, 255, 200, 200, 200])
    path = saved(tmp_path / "p.png", palette, transparency=1)
    assert read_image(path, SPEC).max() == 0.0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    choices: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpg": {"quality": 100}}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(GREY), exif=exif, **choices.get(suffix, {}))
    expected = ORIENTED[orientation] / 255
    height, width = expected.shape
    assert image_size(path) == (width, height)
    pixels = read_image(path, InputSpec(1, height, width))
    np.testing.assert_allclose(pixels[0], expected, atol=0.02 if suffix == "jpg" else 1e-6)


def test_only_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.new("L", (20, 12), 0)]
    path = saved(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path, SPEC)[0], GREY.astype(np.float32) / np.float32(255))


def test_bilinear_halving_has_triangle_weights() -> None:
    impulse = np.zeros((1, 1, 16), dtype=np.float32)
    impulse[0, 0, 8] = 1.0
    halved = fit(impulse, InputSpec(1, 1, 8))[0, 0]
    np.testing.assert_allclose(halved[3:6], [1 / 8, 3 / 8, 0.0], atol=1e-6)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_every_filter_keeps_constants_and_stays_in_range(resample: str) -> None:
    spec = InputSpec(1, 7, 33, resample)
    assert fit(np.full((1, 12, 20), 0.25, dtype=np.float32), spec) == pytest.approx(0.25, abs=1e-6)
    edges = fit((GREY[None] > 127).astype(np.float32), spec)
    assert edges.min() >= 0.0
    assert edges.max() <= 1.0


def test_channels_other_than_1_or_3_are_refused() -> None:
    with pytest.raises(DataError, match="wants 2 channels: images are grey"):
        fit(np.zeros((1, 4, 4), dtype=np.float32), InputSpec(2, 4, 4))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 13_000, 30_000])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    message = "more than the 50 million allowed" if side < 14_000 else "bomb.png cannot be decoded .*exceeds limit"
    for read in (lambda: read_image(path, SPEC), lambda: image_size(path), lambda: check_header(path)):
        with pytest.raises(DataError, match=message):
            read()


def test_damaged_and_disguised_files_are_named(tmp_path: Path) -> None:
    whole, gif = io.BytesIO(), io.BytesIO()
    Image.fromarray(GREY).save(whole, "PNG")
    Image.fromarray(GREY).save(gif, "GIF")
    cases = {
        "truncated.png": (whole.getvalue()[: len(whole.getvalue()) // 2], "truncated.png cannot be decoded .*damaged"),
        "text.png": (b"only text\n" * 50, "text.png is no readable PNG, JPEG, TIFF, BMP, WEBP or DICOM image"),
        "empty.png": (b"", "empty.png is no readable PNG"),
        "gif.png": (gif.getvalue(), "gif.png is no readable PNG"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / name, SPEC)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(DataError, match=f"{name} is no regular file: give the path"):
            read_image(tmp_path / name, SPEC)
    with pytest.raises(DataError, match=r"gone.png cannot be opened \(FileNotFoundError\)"):
        read_image(tmp_path / "gone.png", SPEC)


def test_a_file_of_too_many_bytes_is_not_opened(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY))
    with path.open("ab") as stream:
        stream.truncate(600 * 2**20)
    with pytest.raises(DataError, match="has 600 MiB, more than the 512 MiB allowed"):
        read_image(path, SPEC)


def test_32_bit_files_need_a_known_scale(tmp_path: Path) -> None:
    unit = saved(tmp_path / "f.tif", Image.fromarray((GREY / 255).astype(np.float32)))
    np.testing.assert_allclose(read_image(unit, SPEC)[0], GREY / 255, atol=1e-7)
    for name, values in {"i.tif": GREY.astype(np.int32), "g.tif": GREY.astype(np.float32)}.items():
        with pytest.raises(DataError, match=f"{name} holds 32-bit values outside"):
            read_image(saved(tmp_path / name, Image.fromarray(values)), SPEC)


def encoded() -> dict[str, bytes]:
    files = {}
    for suffix in ("png", "jpeg", "bmp", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(COLOUR).save(buffer, suffix)
        files[suffix] = buffer.getvalue()
    return files


def test_mutated_files_are_decoded_or_refused_in_one_sentence(tmp_path: Path) -> None:
    rng = random.Random(0)
    refused = []
    for suffix, content in encoded().items():
        path = tmp_path / f"a.{suffix}"
        for _ in range(150):
            changed = bytearray(content[: rng.randrange(20, len(content))] if rng.random() < 0.3 else content)
            for _ in range(rng.choice((1, 4, 16))):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            path.write_bytes(changed)
            try:
                pixels = read_image(path, SPEC)
                assert 0.0 <= pixels.min() <= pixels.max() <= 1.0
            except DataError as error:
                refused.append(f"a.{suffix}" in str(error))
    assert len(refused) > 50
    assert all(refused)


def test_a_mask_is_what_is_not_zero_and_fits_its_image(tmp_path: Path) -> None:
    marks = np.where(GREY > 127, 1, 0).astype(np.uint8)
    path = saved(tmp_path / "m.png", Image.fromarray(marks))
    np.testing.assert_array_equal(read_mask(path, (20, 12), SPEC), GREY > 127)
    np.testing.assert_array_equal(read_mask(path, (2000, 1200), SPEC), GREY > 127)
    with pytest.raises(DataError, match=r"m.png is 20×12 pixels but its image is 12×20"):
        read_mask(path, (12, 20), SPEC)
    lossy = saved(tmp_path / "m.jpg", Image.fromarray(marks * 255))
    with pytest.raises(DataError, match=r"m.jpg is a JPEG file: store masks as PNG"):
        read_mask(lossy, (20, 12), SPEC)


def test_a_mask_counts_where_half_is_covered() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, :2] = mask[3, 3] = True
    np.testing.assert_array_equal(fit_mask(mask, InputSpec(1, 2, 2)), [[True, False], [False, False]])


@settings(max_examples=60, deadline=None)
@given(mask=arrays(bool, (9, 11)), height=st.integers(1, 20), width=st.integers(1, 20))
def test_a_mask_is_empty_after_resizing_only_if_it_was_before(mask: np.ndarray, height: int, width: int) -> None:
    assert fit_mask(mask, InputSpec(1, height, width)).any() == mask.any()


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 11),
    y=st.integers(0, 7),
    width=st.integers(1, 12),
    height=st.integers(1, 8),
    scale=st.integers(1, 4),
)
def test_a_box_is_the_mask_of_the_rectangle_drawn(x: int, y: int, width: int, height: int, scale: int) -> None:
    width, height = min(width, 12 - x), min(height, 8 - y)
    drawn = np.zeros((8 * scale, 12 * scale), dtype=bool)
    drawn[y * scale : (y + height) * scale, x * scale : (x + width) * scale] = True
    box = tuple(float(scale * value) for value in (x, y, width, height))
    for spec in (InputSpec(1, 8, 12), InputSpec(1, 4, 4), InputSpec(1, 2, 3)):
        np.testing.assert_array_equal(box_mask(box, (12 * scale, 8 * scale), spec), fit_mask(drawn, spec))


def test_a_box_beyond_its_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"box \(0, 0, 30, 5\) reaches beyond its image of 20×12"):
        box_mask((0, 0, 30, 5), (20, 12), SPEC)
