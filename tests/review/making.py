"""A small classifier, labelled and unlabelled images, and what the queue writes about them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from xvision.config import Plan
from xvision.data.manifest import load_data
from xvision.models.checkpoint import load_model, save_model
from xvision.models.llm.classifier import preset
from xvision.models.protocols import EmbeddingClassifier

CLASSES = ("clear", "spot")


class Quiet:
    """A console that shows nothing."""

    def update(self, title: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""


class World(NamedTuple):
    """plan: of the labelled data and the model. unlabelled: a manifest in another folder. truth: id → class."""

    plan: Plan
    unlabelled: Path
    truth: dict[str, str]


def write_images(folder: Path, count: int, seed: int, prefix: str) -> pd.DataFrame:
    """Two 16 × 16 images of each patient; a spot is bright in men and hard to see in women, three of ten patients."""
    draw = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    patients = np.repeat(np.arange(count // 2), 2)
    spot = draw.integers(2, size=count // 2)[patients]
    woman = (draw.random(count // 2) < 0.3)[patients]
    pixels = 0.4 + 0.06 * draw.standard_normal((count, 16, 16))
    shown = spot * np.where(woman, 0.14, 0.35) + draw.normal(0, 0.05, count)
    pixels[:, 4:12, 4:12] += shown[:, None, None]
    names = [f"images/{prefix}{place:04d}.png" for place in range(count)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).save(folder / name)
    return pd.DataFrame({
        "image": names, "label": np.array(CLASSES)[spot], "patient": [f"{prefix}p{who:03d}" for who in patients],
        "sex": np.where(woman, "F", "M"), "site": draw.choice(["=A", "B"], count),
    })  # fmt: skip


def fitted_checkpoint(folder: Path, table: pd.DataFrame, manifest: Path) -> None:
    """A random body with a head fitted to its embeddings of the training images."""
    module = preset("tiny-qwen3", image_size=16, patch_size=4, classes=CLASSES, seed=0)
    save_model(module, folder)
    model = load_model(folder, device="cpu")
    assert isinstance(model, EmbeddingClassifier)
    data = load_data(manifest).split("train")
    with torch.inference_mode():
        inside = model.embed(torch.from_numpy(data.pixels(data.ids, model.input))).double().numpy()
    head = LogisticRegression(max_iter=5000, C=10.0).fit(inside, data.label_codes(CLASSES))
    with torch.no_grad():
        module.classifier.weight.copy_(torch.from_numpy(np.vstack([np.zeros_like(head.coef_), head.coef_])))
        module.classifier.bias.copy_(torch.tensor([0.0, float(head.intercept_[0])]))
    save_model(module, folder)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copied(world: World, folder: Path, change: pd.DataFrame, which: str = "unlabelled") -> Path:
    """A changed manifest beside links to the same images."""
    source = world.unlabelled.parent if which == "unlabelled" else Path(world.plan.data.path).parent
    (folder / "images").mkdir(parents=True)
    for path in (source / "images").iterdir():
        (folder / "images" / path.name).hardlink_to(path)
    change.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"
