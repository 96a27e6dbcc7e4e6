"""Synthetic chest phantoms whose flaws are known, because they were planted.

Each random quantity is drawn from a stream of its own, so that switching one flaw on changes nothing but what the flaw
changes: a flaw of strength 0 leaves every pixel and every cell as if the flaw did not exist.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from xvision.data.anatomy import TEXTURE_CELLS, Anatomy, Lesions, Wires, chests, glyph, lesion_profiles, wire_covers
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.errors import ConfigError, DataError

CLASSES = ("normal", "lesion")
GROUPS = ("sex", "age_band", "site", "scanner")
_SPLITS = ("train", "validation", "test")
# New streams go to the end: the position decides what a stream draws.
_STREAMS = (
    "visits",
    "label",
    "split",
    "sex",
    "age",
    "scanner",
    "site",
    "anatomy",
    "pose",
    "texture",
    "lesion",
    "exposure",
    "noise",
    "marker",
    "label noise",
    "hidden",
    "wire",
    "detector",
)
_CHUNK = 64
_FAINT = 0.2
"""Share of its contrast that a lesion keeps beside a wire."""


@dataclass(frozen=True)
class PhantomSettings:
    """How many phantoms and which flaws.

    n: images. size: pixels per side. prevalence: share of patients whose images show a lesion. contrast: height of a
    lesion above the lung, in [0, 1] pixel units before gamma. visits: most images per patient; each number from one on
    is equally likely. fractions: of the patients in train, validation and test.

    Flaws, each off at 0. shortcut: correlation s in train and validation between the label and site B, whose images
    then carry a bright letter in the upper left corner: P(B | lesion) = (1 + s)/2 and P(B | normal) = (1 − s)/2; in
    test, as everywhere when off, both are 1/2. contrast_gap: share of the lesion's contrast that is lost for sex F.
    label_noise: share of the training labels that are flipped; masks keep the truth. hidden: share of the patients who
    carry a device, which no column records and nothing else depends on: a bright curved wire lies over the chest in all
    their images, and their lesions keep a fifth of their contrast; ``carriers`` tells who they are. site_shift: how far
    the detector of site B differs, in test alone: at 1, gamma 1.8, half the range of grey and noise of 0.06 more. Age
    band and scanner never have an effect: what an audit finds in them is chance. Raises ConfigError for values out of
    range.
    """

    n: int = 3000
    seed: int = 0
    size: int = 64
    prevalence: float = 0.5
    contrast: float = 0.40
    visits: int = 3
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    shortcut: float = 0.0
    contrast_gap: float = 0.0
    label_noise: float = 0.0
    hidden: float = 0.0
    site_shift: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("seed", 0), ("size", 32), ("visits", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)} but must be at least {least}.")
        for name in ("prevalence", "contrast", "shortcut", "contrast_gap", "label_noise", "hidden", "site_shift"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)} but must lie between 0 and 1.")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1.0) > 1e-9:
            raise ConfigError(f"fractions are {self.fractions} but must not be negative and must add up to 1.")


class Phantoms(NamedTuple):
    """pixels: (N, 1, H, W) float32 in [0, 1], multiples of 1/255. masks: (N, H, W) bool, where a lesion adds density.

    table: index ``id``; label, patient, split, sex, age_band, site, scanner, image, mask ("" without lesion), all str.
    """

    pixels: np.ndarray
    masks: np.ndarray
    table: pd.DataFrame


def marker_box(size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (exclusive) pixel of the region in which the marker is drawn."""
    scale = max(1, size // 64)
    return 2 * scale, 2 * scale, (2 + 5 + 2) * scale, (2 + 7 + 2) * scale


def generate(settings: PhantomSettings) -> Phantoms:
    """Phantoms drawn as the settings say; the same settings give the same bytes."""
    streams = _streams(settings.seed)
    table, diseased = _table(settings, streams)
    anatomy = _anatomy(pd.factorize(table["patient"])[0], streams)
    lesions = _lesions(settings.n, streams["lesion"])
    faint = (table["sex"] == "F").to_numpy()
    contrast = settings.contrast * diseased * np.where(faint, 1.0 - settings.contrast_gap, 1.0)
    wired = _carriers(settings, table, streams)
    contrast[wired] *= _FAINT
    wires = _wires(settings.n, streams["wire"])
    exposure = streams["exposure"].random((settings.n, 3), dtype=np.float32)
    pixels = np.empty((settings.n, 1, settings.size, settings.size), dtype=np.float32)
    masks = np.zeros((settings.n, settings.size, settings.size), dtype=bool)
    for start in range(0, settings.n, _CHUNK):
        part = slice(start, min(start + _CHUNK, settings.n))
        shapes = Anatomy(*(values[part] for values in anatomy))
        texture = streams["texture"].standard_normal((part.stop - start, TEXTURE_CELLS, TEXTURE_CELLS), np.float32)
        image = chests(shapes, texture, settings.size)
        masks[part] = _add_lesions(image, contrast[part], Lesions(*(values[part] for values in lesions)), shapes)
        _add_wires(image, wired[part], Wires(*(values[part] for values in wires)), shapes)
        pixels[part, 0] = _exposed(image, exposure[part], streams["noise"])
    if settings.site_shift > 0:
        elsewhere = ((table["site"] == "B") & (table["split"] == "test")).to_numpy()
        _detect(pixels[:, 0], elsewhere, settings.site_shift, streams["detector"])
    if settings.shortcut > 0:
        _mark(pixels[:, 0], (table["site"] == "B").to_numpy(), streams["marker"])
    levels = np.rint(pixels * np.float32(255)).astype(np.uint8)
    return Phantoms(levels.astype(np.float32) / np.float32(255), masks, table)


def carriers(settings: PhantomSettings) -> np.ndarray:
    """(N,) bool: whose patient carries the device that no column records."""
    streams = _streams(settings.seed)
    return _carriers(settings, _table(settings, streams)[0], streams)


def phantom_dataset(settings: PhantomSettings) -> AuditDataset:
    """The phantoms as a data set in memory, equal to what ``write_phantoms`` writes."""
    phantoms = generate(settings)
    source = ArraySource(tuple(phantoms.table.index), phantoms.pixels, phantoms.masks)
    return AuditDataset(phantoms.table, GROUPS, source)


def write_phantoms(settings: PhantomSettings, folder: str | os.PathLike[str]) -> Path:
    """Write images and masks as PNG with ``manifest.csv`` and return the folder, which appears only when complete.

    Raises DataError when the folder exists and is not empty.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} exists and is not empty: choose another folder for the phantoms.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        _write(generate(settings), unfinished)
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _write(phantoms: Phantoms, folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    levels = np.rint(phantoms.pixels[:, 0] * 255).astype(np.uint8)
    for row, (image, mask) in enumerate(zip(phantoms.table["image"], phantoms.table["mask"], strict=True)):
        Image.fromarray(levels[row]).save(folder / image)
        if mask:
            Image.fromarray(phantoms.masks[row]).save(folder / mask)
    phantoms.table.to_csv(folder / "manifest.csv")


def _streams(seed: int) -> dict[str, np.random.Generator]:
    children = np.random.SeedSequence(seed).spawn(len(_STREAMS))
    return {name: np.random.default_rng(child) for name, child in zip(_STREAMS, children, strict=True)}


def _table(settings: PhantomSettings, streams: dict[str, np.random.Generator]) -> tuple[pd.DataFrame, np.ndarray]:
    """The table, and who truly has a lesion (N,) bool."""
    visits = streams["visits"].integers(1, settings.visits + 1, settings.n)
    patient = np.repeat(np.arange(settings.n), visits)[: settings.n]
    visit = np.arange(settings.n) - np.searchsorted(patient, patient) + 1
    count = int(patient[-1]) + 1
    diseased = streams["label"].random(count) < settings.prevalence
    split = _split(count, settings.fractions, streams["split"])
    tied = np.where(split == "test", 0.0, settings.shortcut) * np.where(diseased, 1.0, -1.0)
    site = np.where(streams["site"].random(count) < (1.0 + tied) / 2, "B", "A")
    flipped = (streams["label noise"].random(settings.n) < settings.label_noise) & (split[patient] == "train")
    digits = len(str(count))
    names = [f"p{number + 1:0{digits}d}" for number in range(count)]
    cases = [f"{names[who]}-{which}" for who, which in zip(patient, visit, strict=True)]
    columns = {
        "label": np.asarray(CLASSES)[(diseased[patient] ^ flipped).astype(int)],
        "patient": np.asarray(names)[patient],
        "split": split[patient],
        "sex": streams["sex"].choice(["F", "M"], count)[patient],
        "age_band": streams["age"].choice(["<40", "40-59", "60+"], count)[patient],
        "site": site[patient],
        "scanner": streams["scanner"].choice(["DX-1", "DX-2", "DX-3"], count)[patient],
        "image": [f"images/{case}.png" for case in cases],
        "mask": [f"masks/{case}.png" if ill else "" for case, ill in zip(cases, diseased[patient], strict=True)],
    }
    return pd.DataFrame(columns, index=pd.Index(cases, name="id", dtype="str"), dtype="str"), diseased[patient]


def _carriers(settings: PhantomSettings, table: pd.DataFrame, streams: dict[str, np.random.Generator]) -> np.ndarray:
    who = pd.factorize(table["patient"])[0]
    carried: np.ndarray = (streams["hidden"].random(int(who[-1]) + 1) < settings.hidden)[who]
    return carried


def _split(count: int, fractions: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """Split of each patient (count,), with the fractions met as closely as whole patients allow."""
    ends = np.rint(np.cumsum(fractions) * count).astype(int)
    place = rng.permutation(count)
    return np.asarray(_SPLITS)[np.searchsorted(ends[:2], place, side="right")]


def _anatomy(patients: np.ndarray, streams: dict[str, np.random.Generator]) -> Anatomy:
    """Anatomy belongs to the patient; position and depth of breath to the image."""
    count = int(patients[-1]) + 1
    build = streams["anatomy"].uniform(-1.0, 1.0, (count, 7)).astype(np.float32)[patients].T
    pose = streams["pose"].uniform(-1.0, 1.0, (len(patients), 3)).astype(np.float32).T
    return Anatomy(
        shift=0.05 * pose[0],
        lift=0.05 * pose[1],
        width=1.0 + 0.07 * build[0],
        height=(1.0 + 0.06 * build[1]) * (1.0 + 0.03 * pose[2]),
        heart=1.0 + 0.15 * build[2],
        density=1.0 + 0.07 * build[3],
        rib_spacing=1.0 + 0.08 * build[4],
        rib_phase=np.pi * build[5],
        rib_depth=1.0 + 0.35 * build[6],
    )


def _lesions(n: int, rng: np.random.Generator) -> Lesions:
    draw = rng.random((n, 6), dtype=np.float32).T
    return Lesions(
        side=np.where(draw[0] < 0.5, np.float32(-1), np.float32(1)),
        angle=2 * np.pi * draw[1],
        distance=np.sqrt(draw[2]),
        radius=0.11 + 0.09 * draw[3],
        stretch=1.0 + 0.5 * draw[4],
        tilt=np.pi * draw[5],
    )


def _add_lesions(image: np.ndarray, contrast: np.ndarray, lesions: Lesions, shapes: Anatomy) -> np.ndarray:
    """Add a lesion to each image (B, H, W) whose contrast (B,) is not 0, in place, and return the masks."""
    shown = np.flatnonzero(contrast)
    chosen = Lesions(*(values[shown] for values in lesions)), Anatomy(*(values[shown] for values in shapes))
    profile = lesion_profiles(*chosen, image.shape[-1])
    image[shown] += contrast[shown].astype(np.float32)[:, None, None] * profile
    masks = np.zeros(image.shape, dtype=bool)
    masks[shown] = profile > 0
    return masks


def _wires(n: int, rng: np.random.Generator) -> Wires:
    draw = rng.uniform(-1.0, 1.0, (n, 4)).astype(np.float32).T
    return Wires(place=0.45 * draw[0], lean=0.5 * draw[1], bow=0.15 + 0.05 * draw[2], phase=np.pi * draw[3])


def _add_wires(image: np.ndarray, chosen: np.ndarray, wires: Wires, shapes: Anatomy) -> None:
    """Lay a wire over each of the chosen images (B, H, W), in place: it stops almost every ray that meets it."""
    rows = np.flatnonzero(chosen)
    where = Wires(*(values[rows] for values in wires)), Anatomy(*(values[rows] for values in shapes))
    image[rows] += wire_covers(*where, image.shape[-1]) * np.maximum(np.float32(0.95) - image[rows], 0.0)


def _exposed(image: np.ndarray, exposure: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Gain, gamma and noise of each image; attenuation (B, H, W) in, values in [0, 1] out."""
    gain, gamma, grain = (exposure[:, place, None, None] for place in range(3))
    shown = np.clip(image * (0.94 + 0.12 * gain), 0.0, 1.0) ** (0.85 + 0.35 * gamma)
    shown += (0.015 + 0.02 * grain) * noise.standard_normal(shown.shape, dtype=np.float32)
    return np.clip(shown, 0.0, 1.0, out=shown)


def _detect(images: np.ndarray, chosen: np.ndarray, strength: float, rng: np.random.Generator) -> None:
    """Show the chosen images (N, H, W) as another detector would, in place."""
    for row in range(len(images)):
        grain = rng.standard_normal(images.shape[1:], dtype=np.float32)
        if chosen[row]:
            flat = (1.0 - 0.5 * strength) * images[row] ** (1.0 + 0.8 * strength)
            images[row] = np.clip(flat + 0.06 * strength * grain, 0.0, 1.0)


def _mark(images: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> None:
    """Burn the letter into the chosen images (N, H, W), in place, somewhere inside the marker box."""
    left, top, _, _ = marker_box(images.shape[-1])
    scale = max(1, images.shape[-1] // 64)
    letter = glyph(scale)
    moves = rng.integers(0, 2 * scale + 1, (len(images), 2))
    brightness = rng.uniform(0.85, 1.0, len(images)).astype(np.float32)
    for row in np.flatnonzero(chosen):
        y, x = top + moves[row, 0], left + moves[row, 1]
        region = images[row, y : y + letter.shape[0], x : x + letter.shape[1]]
        region[:] = np.maximum(region, brightness[row] * letter)
