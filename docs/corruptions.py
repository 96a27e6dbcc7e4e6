"""Makes the pictures of every kind of corruption at every severity: `python docs/corruptions.py`, one JPEG per modality.

The images are the project's own phantoms, coloured for modalities in colour: they show what a kind does, not what a scanner sees.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from xvision.data.synthetic import PhantomSettings, generate
from xvision.methods.corruptions import CORRUPTIONS, MODALITIES, corrupt, kinds_of, severities_of

HERE = Path(__file__).parent / "corruptions"
_SIDE, _LABEL, _GAP = 96, 285, 3
_TINTS = {
    "dermoscopy": ((0.45, 0.24, 0.17), (0.95, 0.76, 0.66)),
    "histology": ((0.35, 0.18, 0.50), (0.96, 0.90, 0.95)),
    "fundus": ((0.12, 0.02, 0.01), (0.92, 0.48, 0.22)),
    "natural": ((0.10, 0.22, 0.08), (0.80, 0.86, 0.66)),
}
"""The colours of black and white."""


def phantom(modality: str) -> torch.Tensor:
    """(1, C, side, side)."""
    grey = torch.from_numpy(generate(PhantomSettings(n=4, seed=2, size=_SIDE)).pixels[:1])
    if modality not in _TINTS:
        return grey
    dark, light = (torch.tensor(colour).view(1, 3, 1, 1) for colour in _TINTS[modality])
    return dark + (light - dark) * grey


def sheet(modality: str) -> Image.Image:
    """One row per kind: its name and setting, the image as it is, severities 1 to 5."""
    clean, kinds, step = phantom(modality), kinds_of(modality), _SIDE + _GAP
    page = Image.new("RGB", (_LABEL + 6 * step, 20 + len(kinds) * step), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for severity in range(6):
        draw.text((_LABEL + severity * step, 3), f"severity {severity}" if severity else "clean", "black", font)
    for row, kind in enumerate(kinds):
        top, found = 20 + row * step, CORRUPTIONS[kind]
        values = ", ".join(str(value) for value in severities_of(kind, modality))
        said = (
            found.title,
            kind,
            f"{found.parameter}",
            values if len(values) < 40 else f"{values[:37]}...",
            found.source,
        )
        for line, words in enumerate(said):
            draw.text((4, top + 2 + 17 * line), words, "black" if line == 0 else "dimgray", font)
        for severity in range(6):
            image = corrupt(clean, kind, severity, ["phantom"], seed=0, modality=modality)
            page.paste(picture(image[0]), (_LABEL + severity * step, top))
    return page


def picture(image: torch.Tensor) -> Image.Image:
    levels = (255 * image.expand(3, -1, -1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(levels)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name in MODALITIES:
        sheet(name).save(HERE / f"{name}.jpg", quality=60, optimize=True)
