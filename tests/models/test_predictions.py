from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from xvision.errors import ModelError
from xvision.models.open import is_predictions, load_model
from xvision.models.predictions import SMALLEST, PredictionsClassifier, load_predictions
from xvision.models.protocols import Classifier

HEADER = "id,prob:normal,prob:lesion"


def write(folder: Path, *lines: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_probabilities_become_logits_and_come_back(tmp_path: Path) -> None:
    model = load_model(
        write(tmp_path, "extra,image,prob:a,prob:b,prob:c", "x,1.png,0.2,0.3,0.5", ",2.png,1,0,0"), device="cpu"
    )
    assert isinstance(model, PredictionsClassifier)
    assert isinstance(model, Classifier)
    assert (model.classes, model.task, model.access, model.key) == (("a", "b", "c"), "multiclass", "scores", "image")
    logits = model.predicted(["2.png", "1.png"])
    assert logits[1] == pytest.approx(np.log([0.2, 0.3, 0.5]))
    assert softmax(logits, axis=1) == pytest.approx(np.array([[1, 0, 0], [0.2, 0.3, 0.5]]), abs=3 * SMALLEST)


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=5))
def test_softmax_of_the_logits_is_the_normalised_row(weights: list[float]) -> None:
    row = np.array([weights]) / sum(weights)
    model = PredictionsClassifier("p.csv", "id", ("a",), tuple(map(str, range(len(weights)))), row * 1.005)
    assert softmax(model.predicted(["a"]), axis=1) == pytest.approx(row, abs=1e-9)


def test_one_column_is_its_class_against_the_rest(tmp_path: Path) -> None:
    model = load_predictions(write(tmp_path, "id,prob:lesion", "1,0.25"))
    assert (model.classes, model.task) == (("not lesion", "lesion"), "binary")
    assert softmax(model.predicted(["1"]))[0] == pytest.approx([0.75, 0.25])


def test_findings_may_occur_together(tmp_path: Path) -> None:
    model = load_predictions(write(tmp_path, "id,finding:effusion,finding:nodule", "1,0.9,0.8", "2,0,1"))
    assert (model.classes, model.task) == (("effusion", "nodule"), "multilabel")
    assert expit(model.predicted(["1", "2"])) == pytest.approx(np.array([[0.9, 0.8], [0, 1]]), abs=1e-9)
    one = model.finding("nodule")
    assert (one.classes, one.task) == (("no nodule", "nodule"), "binary")
    assert softmax(one.predicted(["1"]))[0] == pytest.approx([0.2, 0.8])
    assert len({model.fingerprint, one.fingerprint, model.finding("effusion").fingerprint}) == 3


def test_equal_predictions_have_equal_fingerprints(tmp_path: Path) -> None:
    first = load_predictions(write(tmp_path, HEADER, "1,0.5,0.5")).fingerprint
    assert load_predictions(write(tmp_path, HEADER, "1,0.50,0.5")).fingerprint == first
    assert load_predictions(write(tmp_path, HEADER, "1,0.51,0.49")).fingerprint != first
    assert load_predictions(write(tmp_path, HEADER, "2,0.5,0.5")).fingerprint != first


def test_a_predictions_file_is_known_by_its_name() -> None:
    assert is_predictions("a/B.CSV")
    assert not is_predictions("owner/name")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((HEADER, "1,0.5,nan"), r"row 2, prob:lesion: 'nan' is no probability"),
        ((HEADER, "1,0.5,0.5", "2,1.5,-0.5"), r"row 3, prob:normal: '1\.5' is no probability"),
        ((HEADER, "1,0.5,"), r"row 2, prob:lesion: '' is no probability"),
        (
            (HEADER, "1,0.5,0.5", "", "2,0.5,0.3"),
            r"row 4: the probabilities sum to 0\.8, not 1 \(1 rows do not\).*finding:NAME",
        ),
        ((HEADER, "1,0.5,0.5", "1,0.5,0.5"), r"row 3 repeats the id '1' of row 2"),
        ((HEADER, ",0.5,0.5"), "row 2 has no id"),
        ((HEADER, "1,0.5"), "row 2 has 2 cells but the header has 3"),
        ((HEADER,), "has no rows"),
        (("name,prob:a,prob:b", "1,0.5,0.5"), r"has neither a column id nor image \(found: name, prob:a, prob:b\)"),
        (("id,normal,lesion", "1,0.5,0.5"), "has 0 columns prob:CLASS and 0 columns finding:NAME"),
        (("id,prob:a,finding:b", "1,0.5,0.5"), "has 1 columns prob:CLASS and 1 columns finding:NAME"),
        (("id,prob:a,prob:a", "1,0.5,0.5"), "each once"),
        (("id,prob:,prob:a", "1,0.5,0.5"), "each once"),
    ],
)
def test_files_that_cannot_be_used_are_refused(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_predictions(write(tmp_path, *lines))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file\. Give a CSV file of predictions"):
        load_predictions(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        load_predictions(tmp_path / "folder.csv")
    (tmp_path / "bytes.csv").write_bytes(b"id,prob:a\n\xff,1\n")
    with pytest.raises(ModelError, match="no well-formed CSV file in UTF-8"):
        load_predictions(tmp_path / "bytes.csv")


def test_predictions_are_no_model(tmp_path: Path) -> None:
    import torch

    model = load_predictions(write(tmp_path, HEADER, "1,0.5,0.5"))
    with pytest.raises(ModelError, match=r"holds predictions, not a model: it cannot be run on 2 images"):
        model.logits(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ModelError, match=r"has no prediction for '7' \(1 of 2 lack one\)"):
        model.predicted(["1", "7"])
