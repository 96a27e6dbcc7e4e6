"""Models that look at known parts of the image, or at none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.analyses.subjects import SIDE, linear_model, subject
from xvision.analyses.image_reliance import image_reliance
from xvision.audit import Audit
from xvision.methods.decision import Decision
from xvision.models.network import NetworkClassifier
from xvision.result import Metric, Result

EDGE = 3


def audit_of(weights: np.ndarray, cases: int = 60) -> Audit:
    """Lesions are brighter in the left half of the centre and in the border; 0.5 is the threshold of their sum."""
    rng = np.random.default_rng(1)
    labels = np.arange(cases) % 2
    pixels = 0.35 + 0.1 * rng.random((cases, SIDE, SIDE))
    pixels[labels == 1, :, : SIDE // 2] += 0.3
    audit = replace(
        subject(weights.astype(np.float32), pixels), task="image_reliance", groups=("site",), acquisition=()
    )
    centred = float((pixels * weights).sum(axis=(1, 2)).mean())
    return replace(audit, decision=Decision(1, 1 / (1 + np.exp(-centred)), True))


def found(result: Result, name: str, **where: str) -> Metric:
    (one,) = [item for item in result.metrics if item.name == name and dict(item.where) == where]
    return one


def border() -> np.ndarray:
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[EDGE:-EDGE, EDGE:-EDGE] = True
    return ~inside


def value(result: Result, given: str) -> float:
    item = found(result, "reliance", input=given)
    assert item.value is not None, item.reason
    return item.value


def test_a_model_that_reads_the_border_keeps_all_with_the_border_alone() -> None:
    result = image_reliance(audit_of(0.1 * border()), border=EDGE / SIDE, resamples=100)
    assert found(result, "auroc", input="image").value == 1.0
    assert value(result, "border_only") == 0.0
    assert value(result, "centre_only") == 1.0  # all scores are equal
    assert "border alone keeps" in result.summary


def test_a_model_that_reads_the_centre_loses_all_with_the_border_alone() -> None:
    result = image_reliance(audit_of(0.1 * ~border()), border=EDGE / SIDE, resamples=100)
    assert value(result, "border_only") == 1.0
    assert value(result, "centre_only") == 0.0
    assert "border alone" not in result.summary


def test_swapped_images_take_the_performance_with_them() -> None:
    result = image_reliance(audit_of(np.full((SIDE, SIDE), 0.1)), resamples=100)
    assert value(result, "another_patient") == pytest.approx(1.0, abs=0.35)
    assert value(result, "same_class") == 0.0
    assert value(result, "other_class") == 2.0  # it follows the other image
    assert found(result, "flip_rate", input="same_class").value == 0.0
    assert found(result, "accuracy", input="other_class").value == 0.0
    assert value(result, "black") == 1.0
    assert value(result, "patch_shuffled") == pytest.approx(0.0, abs=1e-9)  # the mean does not know where a pixel is
    assert found(result, "reliance", input="another_patient", site="A").n == 60
    both = [found(result, "reliance", **{"input": "another_patient", "class": name}) for name in ("normal", "lesion")]
    assert all(item.value == pytest.approx(1.0, abs=0.4) for item in both)


def test_the_arrangement_matters_to_a_model_of_differences() -> None:
    weights = np.full((SIDE, SIDE), -0.1)
    weights[:, : SIDE // 2] = 0.1
    result = image_reliance(audit_of(weights), resamples=100)
    assert value(result, "patch_shuffled") > 0.4


def test_a_model_without_knowledge_has_nothing_to_rely_on() -> None:
    result = image_reliance(audit_of(np.zeros((SIDE, SIDE))), resamples=50)
    assert found(result, "reliance", input="another_patient").value is None
    assert "No visual reliance score" in result.summary


def test_one_patient_has_no_partner_and_parts_change_nothing() -> None:
    audit = audit_of(np.full((SIDE, SIDE), 0.1), 12)
    table = audit.everything.table
    one = replace(audit, everything=replace(audit.everything, table=table.assign(patient="p")))
    assert "no other patient" in str(
        found(image_reliance(one, resamples=20), "reliance", input="another_patient").reason
    )
    whole = image_reliance(audit, resamples=20)
    audit.engine.part = 5
    again = image_reliance(replace(audit, shared={}), resamples=20)
    assert [item.value for item in whole.metrics] == [item.value for item in again.metrics]


class _Reads(NetworkClassifier):
    """Log-odds of the mean brightness times ``sight``, and 4 for a text that says lesion."""

    sight = 0.0
    texts: tuple[str, ...] = ()

    @property
    def takes_text(self) -> bool:
        return True

    def with_text(self, texts: Sequence[str]) -> _Reads:
        bound = _Reads(self.module, self.facts, self.device)
        bound.sight, bound.texts = self.sight, tuple(texts)
        return bound

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        said = torch.tensor([8.0 * ("lesion" in text) - 4.0 for text in self.texts])
        odds = said.expand(len(pixels)) + self.sight * (pixels.mean(dim=(1, 2, 3)) - 0.475)
        return torch.stack([torch.zeros_like(odds), odds], dim=1)


def reading(sight: float) -> Audit:
    audit = audit_of(np.full((SIDE, SIDE), 0.1))
    table = audit.everything.table
    texts = np.where(table["label"] == "lesion", "a lesion is suspected", "a check")
    plain = linear_model(np.ones((SIDE, SIDE), dtype=np.float32))
    model = _Reads(plain.module, plain.facts, plain.device)
    model.sight = sight
    data = replace(audit.everything, table=table.assign(text=texts))
    return replace(audit, model=model, everything=data, decision=Decision(1, 0.5, True))


def test_a_model_that_goes_by_the_text_is_found_blind_and_one_that_does_not_is_not() -> None:
    blind = image_reliance(reading(0.0), resamples=100)
    score = found(blind, "reliance", input="another_patient")
    assert (score.value, score.high) == (0.0, 0.0)
    assert value(blind, "black") == 0.0
    assert value(blind, "other_text") == 2.0
    assert value(blind, "no_text") == 1.0
    seeing = image_reliance(reading(1000.0), resamples=100)
    assert value(seeing, "other_text") == 0.0
    assert value(seeing, "other_class") == 2.0


def test_four_images_that_are_all_told_apart_are_no_evidence() -> None:
    result = image_reliance(audit_of(np.full((SIDE, SIDE), 0.1), 4), resamples=50)
    clean = found(result, "auroc", input="image")
    assert clean.value == 1.0
    assert clean.low == pytest.approx(0.342, abs=1e-3)  # Wilson for two of two
    assert "not shown to be above chance" in str(found(result, "reliance", input="black").reason)


def test_a_group_called_class_is_told_apart_from_the_classes() -> None:
    audit = audit_of(np.full((SIDE, SIDE), 0.1), 20)
    table = audit.everything.table
    named = replace(audit, everything=replace(audit.everything, table=table.assign(**{"class": table["label"]})))
    result = image_reliance(replace(named, groups=("class",)), resamples=20)
    keys = [(item.name, *sorted(item.where.items())) for item in result.metrics]
    assert len(keys) == len(set(keys))
