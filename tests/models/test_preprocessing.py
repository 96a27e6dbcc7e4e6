from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.builders import PROCESSOR
from xvision.errors import ModelError
from xvision.models.preprocessing import Preprocessing, read_preprocessing
from xvision.models.protocols import InputSpec


def written(folder: Path, **changes: Any) -> Path:
    data = {key: value for key, value in {**PROCESSOR, **changes}.items() if value is not None}
    (folder / "preprocessor_config.json").write_text(json.dumps(data))
    return folder


def test_numbers_are_read_as_written(tmp_path: Path) -> None:
    found = read_preprocessing(written(tmp_path, resample=3, size={"height": 48, "width": 64}), 3)
    assert found.input == InputSpec(3, 48, 64, "bicubic")
    assert found.scale == pytest.approx(1.0)
    assert (found.mean, found.std, found.notes) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ())


def test_normalise_by_hand() -> None:
    chosen = Preprocessing(InputSpec(2, 1, 1), 2.0, (0.5, 1.0), (0.25, 0.5))
    found = chosen.normalise(torch.tensor([[[[0.5]], [[0.25]]]]))
    assert found.flatten().tolist() == [2.0, -1.0]


@pytest.mark.parametrize(
    ("changes", "scale", "mean"),
    [
        ({"do_normalize": False, "image_mean": None, "image_std": None}, 1.0, 0.0),
        ({"do_rescale": False}, 255.0, 0.5),
        ({"rescale_factor": 1 / 127.5}, 2.0, 0.5),
        ({"do_rescale": None, "rescale_factor": None}, 1.0, 0.5),
        ({"image_mean": 0.5, "image_std": 0.5}, 1.0, 0.5),
    ],
)
def test_rescaling_and_normalising_may_be_off(
    changes: dict[str, Any], scale: float, mean: float, tmp_path: Path
) -> None:
    found = read_preprocessing(written(tmp_path, **changes), 3)
    assert found.scale == pytest.approx(scale)
    assert found.mean[0] == mean


@pytest.mark.parametrize(
    ("changes", "side", "note"),
    [
        ({"size": 32}, 32, None),
        ({"size": {"shortest_edge": 32}}, 32, "keeps the aspect ratio; the whole image is resized to 32 × 32"),
        (
            {"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
            64,
            "crops the centre; the whole image is resized to 64 × 64",
        ),
        ({"size": {"shortest_edge": 64}, "crop_pct": 0.875}, 64, "crops the centre"),
    ],
)
def test_sizes_and_their_notes(changes: dict[str, Any], side: int, note: str | None, tmp_path: Path) -> None:
    found = read_preprocessing(written(tmp_path, **changes), 3)
    assert (found.input.height, found.input.width) == (side, side)
    assert len(found.notes) == (note is not None)
    assert note is None or note in found.notes[0]


def test_a_processor_file_may_hold_the_image_processor(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSOR}))
    assert read_preprocessing(tmp_path, 3).input == InputSpec(3, 64, 64)


def test_absent_preprocessing_is_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json: add it"):
        read_preprocessing(tmp_path, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": None}, "gives size = None: state the image size"),
        ({"size": {"longest_edge": 64}}, "state the image size as"),
        ({"size": {"height": 0, "width": 64}}, "state the image size as"),
        ({"size": {"height": True, "width": 64}}, "state the image size as"),
        ({"resample": None}, "gives resample = None: state the filter"),
        ({"resample": 5}, "gives resample = 5"),
        ({"resample": [2]}, r"gives resample = \[2\]"),
        ({"image_mean": None}, "normalises but has no image_mean: add it"),
        ({"image_mean": ["a", 0, 0]}, "gives image_mean = 'a': it must be a number"),
        ({"image_mean": [0.5]}, "have 1 and 3 values but the model takes 3 channels"),
        ({"image_std": [0.5, 0.0, 0.5]}, "must be above 0"),
        ({"rescale_factor": "1/255"}, "gives rescale_factor = '1/255': it must be a number"),
        (
            {"do_flip_channel_order": True},
            "asks for do_flip_channel_order = True, a step that xvision does not reproduce",
        ),
        ({"do_pad": True}, "asks for do_pad"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_preprocessing(written(tmp_path, **changes), 3)
