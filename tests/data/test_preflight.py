"""Preflight: every check fires on the fault that is planted for it, and on no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from xvision.data.dataset import AuditDataset
from xvision.data.manifest import load_data
from xvision.data.preflight import preflight
from xvision.data.sources import ArraySource
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.errors import ConfigError, ModelError
from xvision.models.protocols import Access, Classifier, InputSpec, Task
from xvision.result import Check

SPEC = InputSpec(1, 32, 32)
CPU = torch.device("cpu")
PHANTOMS = phantom_dataset(PhantomSettings(120, size=32))


def contrast_logits(pixels: torch.Tensor) -> torch.Tensor:
    mean, spread = pixels.mean(dim=(1, 2, 3)), pixels.std(dim=(1, 2, 3))
    return torch.stack([mean, 3 * spread], dim=1) * 5 - 2


@dataclass(frozen=True)
class Planted:
    """A classifier whose outputs are given by a function of the pixels."""

    function: Callable[[torch.Tensor], torch.Tensor] = contrast_logits
    classes: tuple[str, ...] = ("normal", "lesion")
    access: Access = "black-box"
    task: Task = "binary"
    bounds: tuple[float, float] = (0.0, 1.0)
    input: InputSpec = SPEC
    device: torch.device = CPU
    fingerprint: str = "planted"

    @property
    def description(self) -> dict[str, str | int]:
        return {}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.function(pixels)


def arrays(pixels: np.ndarray, **columns: list[str]) -> AuditDataset:
    ids = [f"c{number}" for number in range(len(pixels))]
    labels = ["normal", "lesion"] * len(pixels)
    table = {"label": labels[: len(pixels)], "patient": ids, "split": ["all"] * len(pixels)} | columns
    return AuditDataset(pd.DataFrame(table, index=pd.Index(ids, name="id"), dtype="str"), (), ArraySource(ids, pixels))


def changed(column: str, values: list[str] | str) -> AuditDataset:
    return replace(PHANTOMS, table=PHANTOMS.table.assign(**{column: values}))


def named(checks: tuple[Check, ...], name: str) -> Check:
    found = [check for check in checks if check.name == name]
    assert len(found) == 1, [check.name for check in checks]
    return found[0]


def faults(checks: tuple[Check, ...]) -> dict[str, Literal["warning", "error"]]:
    return {check.name: check.status for check in checks if check.status != "ok"}


def test_the_planted_model_is_a_classifier() -> None:
    assert isinstance(Planted(), Classifier)


def test_a_sound_model_and_data_pass_every_check() -> None:
    checks = preflight(Planted(), PHANTOMS)
    assert faults(checks) == {}
    assert [check.name for check in checks] == [
        "split", "labels", "classes", "patients", "groups", "images", "duplicates", "pixels", "value_range", "masks", "logits",
        "probabilities", "batch",
    ]  # fmt: skip
    counts = PHANTOMS.table["split"].value_counts()
    assert named(checks, "split").sentence.startswith(f"{counts['test']} of 120 cases are audited")
    assert "headers of all 120 images were read; pixels only of the sample" in named(checks, "images").sentence


def test_the_sample_is_drawn_by_the_seed() -> None:
    def sentence(seed: int) -> str:
        return named(preflight(Planted(), PHANTOMS, sample=3, seed=seed), "batch").sentence

    assert sentence(0) == sentence(0)
    assert len({sentence(seed) for seed in range(8)}) > 1
    assert "3 randomly drawn" in named(preflight(Planted(), PHANTOMS, sample=3), "pixels").sentence
    with pytest.raises(ConfigError, match="sample is 0 but at least one image"):
        preflight(Planted(), PHANTOMS, sample=0)


def test_no_cases() -> None:
    checks = preflight(Planted(), arrays(np.zeros((0, 1, 4, 4), dtype=np.float32)))
    assert [check.status for check in checks] == ["error"]
    assert "no case: nothing can be audited" in checks[0].sentence


def test_labels_that_are_no_classes() -> None:
    check = named(preflight(Planted(classes=("normal", "lesions")), PHANTOMS), "labels")
    assert check.status == "error"
    assert "has the label 'lesion', which is no class" in check.sentence


def test_classes_without_a_case() -> None:
    only = named(preflight(Planted(), changed("label", "lesion")), "classes")
    assert (only.status, only.evidence) == ("error", ("normal",))
    assert "Every audited case is 'lesion'" in only.sentence
    three = Planted(lambda pixels: contrast_logits(pixels)[:, [0, 1, 1]], classes=("normal", "lesion", "mass"))
    absent = named(preflight(three, PHANTOMS), "classes")
    assert (absent.status, absent.evidence) == ("warning", ("mass",))
    assert "1 of 3 classes have no audited case" in absent.sentence


def test_a_patient_in_two_splits() -> None:
    splits = PHANTOMS.table["split"].tolist()
    first = next(place for place, who in enumerate(PHANTOMS.table["patient"].duplicated(keep=False)) if who)
    splits[first] = "test" if splits[first] != "test" else "train"
    leaking = changed("split", splits)
    check = named(preflight(Planted(), leaking), "patients")
    assert (check.status, check.evidence) == ("error", (PHANTOMS.table["patient"].iloc[first],))
    assert check.sentence.startswith("1 of ")
    assert "the audited numbers are optimistic" in check.sentence
    assert named(preflight(Planted(), leaking, allow_leakage=True), "patients").status == "warning"


def test_patients_that_are_not_known() -> None:
    undeclared = named(preflight(Planted(), replace(PHANTOMS, patients_declared=False)), "patients")
    assert undeclared.status == "warning"
    assert "names no patients" in undeclared.sentence
    some = named(preflight(Planted(), replace(PHANTOMS, without_patient=frozenset(PHANTOMS.ids[:7]))), "patients")
    assert (some.status, some.evidence) == ("warning", PHANTOMS.ids[:5])
    assert "7 of 120 cases have no patient" in some.sentence


def test_copies_of_an_image() -> None:
    pixels = np.random.default_rng(0).random((6, 1, 32, 32), dtype=np.float32)
    pixels[5] = pixels[0]
    across = preflight(Planted(), arrays(pixels, split=["train"] * 3 + ["test"] * 3))
    assert faults(across) == {"duplicates": "warning"}
    assert named(across, "duplicates").evidence == ("c0", "c5")
    assert "2 images have a byte-for-byte copy in another split" in named(across, "duplicates").sentence
    within = preflight(Planted(), arrays(pixels))
    assert named(within, "duplicates").evidence == ("c0", "c5")
    assert "2 audited images are byte-for-byte copies of one another" in named(within, "duplicates").sentence


def files(folder: Path, masks: str = "") -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = "".join(f"{name}.png,{label},{name},{masks}\n" for name, label in zip("abc", ("0", "1", "0"), strict=True))
    (folder / "manifest.csv").write_text("image,label,patient,mask\n" + rows)
    return folder


def test_images_without_a_readable_header(tmp_path: Path) -> None:
    data = load_data(files(tmp_path))
    (tmp_path / "b.png").write_text("text")
    checks = preflight(Planted(), data)
    assert faults(checks) == {"images": "error"}
    assert "1 of 3 images cannot be read; the first: " in named(checks, "images").sentence
    assert "b.png is no readable PNG" in named(checks, "images").evidence[0]


def test_images_that_break_while_decoding(tmp_path: Path) -> None:
    data = load_data(files(tmp_path))
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    checks = preflight(Planted(), data)
    assert faults(checks) == {"pixels": "error"}
    assert "1 of 3 sampled images cannot be decoded; the first: " in named(checks, "pixels").sentence


def test_masks_that_do_not_fit_or_mark_nothing(tmp_path: Path) -> None:
    files(tmp_path, masks="m.png")
    Image.new("L", (32, 10), 1).save(tmp_path / "m.png")
    misfit = preflight(Planted(), load_data(tmp_path))
    assert faults(misfit) == {"masks": "error"}
    assert "3 of 3 sampled masks cannot be used; the first: The mask " in named(misfit, "masks").sentence
    Image.new("L", (32, 32), 0).save(tmp_path / "m.png")
    empty = preflight(Planted(), load_data(tmp_path))
    assert faults(empty) == {"masks": "warning"}
    assert "3 of 3 sampled masks mark nothing" in named(empty, "masks").sentence


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (lambda pixels: pixels * 255, "error", r"lie outside \[0, 1\]"),
        (lambda pixels: pixels * np.float32("nan"), "error", r"lie outside \[0, 1\]"),
        (lambda pixels: np.where(np.arange(8)[:, None, None, None] < 2, 0, pixels), "warning", "2 of 8 .* uniform"),
        (lambda pixels: 0.3 + 0.08 * pixels, "warning", "less than a tenth .* the window or bit depth may be wrong"),
    ],
)
def test_value_ranges(change: Callable[[np.ndarray], np.ndarray], status: str, message: str) -> None:
    @dataclass(frozen=True)
    class Raw:
        """A source that does not keep the promise of [0, 1]."""

        inner: ArraySource

        def pixels(self, ids: list[str], spec: InputSpec) -> np.ndarray:
            place = [int(case[1:]) for case in ids]
            return change(np.random.default_rng(0).random((8, 1, 32, 32), dtype=np.float32))[place].astype(np.float32)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    sound = arrays(np.random.default_rng(0).random((8, 1, 32, 32), dtype=np.float32))
    data = replace(sound, source=Raw(sound.source))
    with np.errstate(invalid="ignore"):
        check = named(preflight(Planted(), data), "value_range")
    assert check.status == status
    assert pd.Series([check.sentence]).str.contains(message).all()


def failing(error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def function(pixels: torch.Tensor) -> torch.Tensor:
        raise error

    return function


def shaky(pixels: torch.Tensor) -> torch.Tensor:
    return contrast_logits(pixels) + pixels.mean()


@pytest.mark.parametrize(
    ("function", "expected", "message"),
    [
        (lambda p: torch.ones(len(p), 2) + 1e-8 * p.mean(), {"logits": "error"}, "the same output for every image"),
        (lambda p: contrast_logits(p) * torch.nan, {"logits": "error"}, "The logits of 24 of 24 .* are not finite"),
        (lambda p: contrast_logits(p)[:, :1], {"logits": "error"}, r"has shape \(24, 1\) for 24 images and 2 classes"),
        (lambda p: contrast_logits(p).softmax(1), {"probabilities": "warning"}, r"lie in \[0, 1\] and sum to 1"),
        (shaky, {"batch": "warning"}, "alone and in a batch differ by .* evaluation mode"),
        (failing(ModelError("too wide\nmore")), {"logits": "error"}, "cannot be run on the sample: too wide$"),
        (failing(RuntimeError()), {"logits": "error"}, "cannot be run on the sample: RuntimeError$"),
    ],
)
def test_outputs(function: Callable[[torch.Tensor], torch.Tensor], expected: dict[str, str], message: str) -> None:
    checks = preflight(Planted(function), PHANTOMS, sample=24)
    assert faults(checks) == expected
    assert pd.Series([named(checks, next(iter(expected))).sentence]).str.contains(message).all()


def test_the_batch_is_looked_at_when_the_last_one_holds_one_image() -> None:
    assert faults(preflight(Planted(shaky), PHANTOMS, sample=17)) == {"batch": "warning"}


def test_a_model_known_by_its_scores_needs_no_images(tmp_path: Path) -> None:
    data = load_data(files(tmp_path))
    (tmp_path / "a.png").unlink()
    checks = preflight(Planted(failing(ModelError("no")), access="scores"), data)
    assert faults(checks) == {}
    assert "images were not looked at" in named(checks, "images").sentence
