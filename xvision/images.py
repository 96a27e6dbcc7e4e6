"""Arrays to pictures: the one place where colour is decided. No torch, no matplotlib.

Two colour scales, both readable without colour vision: *strength* (transparent to amber) for maps that have no sign, and
*signed* (blue for evidence against, orange for evidence in favour). A scale's top is printed with the picture by its caller.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, UnidentifiedImageError

Picture = np.ndarray  # uint8 (H, W, 3)

# Okabe & Ito (2008): a palette that stays distinct for colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A", "#000000")
INK, MUTED, GRID = "#1B2733", "#5B6B7A", "#DDE3E8"
VERDICT_COLOURS = {
    "pass": "#1A7F4B",
    "warn": "#B26A00",
    "fail": "#B3261E",
    "insufficient evidence": "#4C5F73",
    "not judged": "#6B7280",
}
VERDICT_SYMBOLS = {"pass": "✓", "warn": "!", "fail": "✗", "insufficient evidence": "?", "not judged": "–"}
MAP_LOOKS = {
    "describes the model": "pass",
    "no better than a control": "fail",
    "fails randomisation": "fail",
    "not decided": "insufficient evidence",
    "not tested": "not judged",
}
"""The verdict whose colour and symbol a word about a method's maps is shown in."""

_STRENGTH = np.array([[0.0, 0.0, 0.0], [0.42, 0.05, 0.30], [0.85, 0.28, 0.12], [1.0, 0.72, 0.10], [1.0, 0.98, 0.75]])
_LEGIBLE = 192  # pixels on the shorter side of a picture that can be read
_POSITIVE, _NEGATIVE = np.array([0.90, 0.42, 0.0]), np.array([0.0, 0.45, 0.70])


def photograph(pixels: np.ndarray) -> Picture:
    """Pixels (C, H, W) in [0, 1], one or three channels, as RGB without any stretching."""
    channels = np.broadcast_to(pixels, (3, *pixels.shape[1:])) if pixels.shape[0] == 1 else pixels[:3]
    rounded = np.clip(np.rint(channels * 255.0), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(rounded, 0, -1))


def strength(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours (…, 3) in [0, 1]: black through red and amber to near white."""
    position = np.clip(values, 0.0, 1.0) * (len(_STRENGTH) - 1)
    lower = np.minimum(position.astype(int), len(_STRENGTH) - 2)
    share = (position - lower)[..., None]
    mixed: np.ndarray = _STRENGTH[lower] * (1 - share) + _STRENGTH[lower + 1] * share
    return mixed


def scale_of(values: np.ndarray) -> float:
    """The magnitude drawn at full colour: the 99th percentile of |values|, so that one pixel cannot hide the rest."""
    top = float(np.quantile(np.abs(values), 0.99)) if values.size else 0.0
    return top if top > 0 else float(np.abs(values).max(initial=0.0))


def overlay(
    pixels: np.ndarray, values: np.ndarray, *, signed: bool, opacity: float = 0.75, share: float = 1.0
) -> Picture:
    """A map (H, W) over its image (C, H, W): stronger evidence is more opaque, an all-zero map shows the image alone.

    share: of the pixels, the strongest, that are drawn; the colours of those do not change with it.
    """
    picture = photograph(pixels) / 255.0
    top = scale_of(values)
    values = np.where(strongest(values, share), values, 0.0)
    level = np.clip(np.abs(values) / top, 0.0, 1.0) if top > 0 else np.zeros_like(values)
    colour = np.where((values >= 0)[..., None], _POSITIVE, _NEGATIVE) if signed else strength(0.35 + 0.65 * level)
    weight = (opacity * level)[..., None]
    blended = picture * (1 - weight) + colour * weight
    return np.ascontiguousarray(np.clip(np.rint(blended * 255.0), 0, 255).astype(np.uint8))


def strongest(values: np.ndarray, share: float) -> np.ndarray:
    """Whether |value| is among the strongest ``share`` of all pixels; equals are in or out together, zero never is."""
    magnitude = np.abs(values)
    count = max(1, round(share * magnitude.size))
    least = (
        np.partition(magnitude, magnitude.size - count, axis=None)[magnitude.size - count] if magnitude.size else 0.0
    )
    chosen: np.ndarray = (magnitude >= least) & (magnitude > 0)
    return chosen


def windowed(pixels: np.ndarray, level: float, width: float) -> np.ndarray:
    """Pixels in [0, 1] spread so that grey values within ``width`` around ``level`` fill the whole scale."""
    spread: np.ndarray = np.clip((pixels - level) / max(width, 1e-6) + 0.5, 0.0, 1.0)
    return spread


def difference(changed: np.ndarray, original: np.ndarray) -> Picture:
    """Signed change (C, H, W) magnified so that the largest fills the scale; grey is no change."""
    change = (changed - original).mean(axis=0)
    top = float(np.abs(change).max(initial=0.0))
    level = change / top if top > 0 else change
    colour = np.where((level >= 0)[..., None], _POSITIVE, _NEGATIVE)
    weight = np.abs(level)[..., None]
    return np.ascontiguousarray(np.rint((0.5 * (1 - weight) + colour * weight) * 255.0).astype(np.uint8))


def outline(picture: Picture, mask: np.ndarray) -> Picture:
    """The picture with the inner border of a boolean mask (H, W) drawn in green."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn = picture.copy()
    drawn[mask & ~inside] = (0, 200, 120)
    return drawn


def enlarged(picture: Picture, side: int = _LEGIBLE) -> Picture:
    """Repeated pixels until the shorter side is at least ``side``: small images stay readable and are not smoothed."""
    factor = max(1, -(-side // min(picture.shape[:2])))
    return np.ascontiguousarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def reduced(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture (H, W, …) at another size by picking the pixel in the middle of each new one: undoes ``enlarged``."""
    rows = ((np.arange(height) + 0.5) * picture.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * picture.shape[1] / width).astype(int)
    return np.ascontiguousarray(picture[rows][:, columns])


def stamped(picture: Picture, words: str) -> Picture:
    """The picture with the words on a band across its middle and a frame: they stay with it wherever it is copied."""
    factor = max(1, 2 * _LEGIBLE // max(picture.shape[:2]))
    canvas = Image.fromarray(np.ascontiguousarray(picture.repeat(factor, axis=0).repeat(factor, axis=1)))
    draw = ImageDraw.Draw(canvas, "RGBA")
    width, height = canvas.size
    fill = (*ImageColor.getrgb(VERDICT_COLOURS["fail"]), 235)
    size = max(6.0, 0.92 * width * 20 / ImageFont.load_default(20).getlength(words))
    draw.rectangle((0, height / 2 - 0.8 * size, width, height / 2 + 0.8 * size), fill=fill)
    draw.rectangle((0, 0, width - 1, height - 1), outline=fill, width=max(2, width // 90))
    draw.text((width / 2, height / 2), words, fill=(255, 255, 255), font=ImageFont.load_default(size), anchor="mm")
    return np.asarray(canvas)


def png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that a PNG states; None for what does not begin as one. Its header's checksum is verified."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 33:
        return None
    width, height = struct.unpack(">II", content[16:24])
    intact = zlib.crc32(content[12:29]) == int.from_bytes(content[29:33], "big")
    return (width, height) if intact and width and height else None


def read_png(content: bytes, most: int) -> Picture:
    """The pixels of a PNG of somebody else, its size checked before it is decoded.

    Raises ValueError that says why when it is not readable or has more than ``most`` pixels on a side.
    """
    size = png_size(content)
    if size is None:
        raise ValueError("not a readable PNG")
    if max(size) > most:
        raise ValueError(f"{size} pixels; a picture here has at most {most}")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            return np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise ValueError("not a readable PNG") from None


def png(picture: Picture) -> bytes:
    """PNG bytes without metadata; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()
