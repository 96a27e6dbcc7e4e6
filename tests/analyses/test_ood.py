"""Images from elsewhere and stand-ins, shown to planted models that notice them, do not, or give no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.analyses.subjects import SIDE, subject
from xvision.audit import Audit, Outside
from xvision.charts import HeatMap, Table
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.stand_ins import STAND_INS
from xvision.models.protocols import InputSpec
from xvision.registry import analyses
from xvision.result import Metric, Result

CASES = 80
Answer = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Planted:
    """Logits of any kind and no embedding."""

    answer: Answer
    classes = ("normal", "lesion")
    task, bounds, input, access = "binary", (0.0, 1.0), InputSpec(1, SIDE, SIDE), "black-box"
    device, fingerprint, description = torch.device("cpu"), "planted", {"architecture": "Planted"}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.answer(pixels).float()


class Embedding(Planted):
    """The same with six features: brightness above and below, to the left and right, spread, and one corner."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        half = SIDE // 2
        parts = (pixels[:, 0, :half], pixels[:, 0, half:], pixels[:, 0, :, :half], pixels[:, 0, :, half:])
        means = [part.mean(dim=(1, 2)) for part in parts]
        return torch.stack([*means, pixels.flatten(1).std(dim=1), pixels[:, 0, 0, 0]], dim=1)


def by_brightness(pixels: torch.Tensor) -> torch.Tensor:
    """Surer the farther the upper half is from a brightness of 0.5."""
    odds = 20 * (pixels[:, 0, : SIDE // 2].mean(dim=(1, 2)) - 0.5)
    return torch.stack((1 - odds / 2, 1 + odds / 2), dim=1)


def pixels_of(cases: int = CASES, seed: int = 0) -> np.ndarray:
    """(cases, 16, 16) dim images, brighter above than below, that differ in their means."""
    rng = np.random.default_rng(seed)
    base = np.linspace(0.55, 0.25, SIDE)[None, :, None] + rng.normal(0, 0.04, (cases, 1, 1))
    return np.clip(base + rng.normal(0, 0.05, (cases, SIDE, SIDE)), 0, 1).astype(np.float32)


def audited(model: Any, pixels: np.ndarray, *, train: int = 40, part: int = 64) -> Audit:
    """The first ``train`` images are the split "train", the others "test"."""
    made = subject(np.zeros((SIDE, SIDE)), pixels)
    split = np.where(np.arange(len(pixels)) < train, "train", "test")
    everything = replace(made.everything, table=made.everything.table.assign(split=split))
    return replace(
        made, model=model, everything=everything, decision=Decision(1, 0.5, True), engine=Engine(part=part), shared={}
    )


def elsewhere(pixels: np.ndarray) -> AuditDataset:
    """Images without labels."""
    ids = [f"other-{place:02d}" for place in range(len(pixels))]
    table = pd.DataFrame(
        {"label": "", "patient": ids, "split": "all", "image": ids}, index=pd.Index(ids, name="id"), dtype="str"
    )
    return AuditDataset(table, (), ArraySource(ids, pixels[:, None].astype(np.float32)))


def run(audit: Audit, **options: Any) -> Result:
    audit.task = "ood"
    found = analyses()["ood"]
    return found(audit, found.bind({"resamples": 20, **options}))


def one(result: Result, name: str, called: str, kind: str = "stand-in", **where: Any) -> Metric:
    wanted = {"set": called, "kind": kind, **where}
    (found,) = [item for item in result.metrics if item.name == name and dict(item.where) == wanted]
    return found


def of_set(result: Result, called: str) -> pd.DataFrame:
    table = result.tables["ood"]
    return table[table["set"] == called]


def test_a_model_that_always_says_the_same_notices_nothing() -> None:
    constant = Planted(lambda pixels: torch.tensor([[-1.0, 2.0]]).repeat(len(pixels), 1))
    result = run(audited(constant, pixels_of()))
    for name in STAND_INS:
        assert one(result, "auroc", name, score="msp").value == 0.5
        assert one(result, "fpr_at_95_tpr", name, score="energy").value == 1.0
        assert one(result, "confidence_change", name).value == 0.0
        assert one(result, "confident_share", name).value == 1.0
        assert one(result, "decision_share", name, **{"class": "lesion"}).value == 1.0
    assert one(result, "mean_confidence", "audited", "audited").value == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)
    assert "falls beyond chance on 0 of 7 sets, least on “black image” (change 0.000" in result.summary
    assert "of the audited images, 1.000 (0.912 to 1.000) are decided at 0.9 or more." in result.summary


def test_confidence_is_that_of_the_pictures_shown() -> None:
    """The answer is known in closed form for blank images, from the table for the others."""
    result = run(audited(Planted(by_brightness), pixels_of()))
    clean = of_set(result, "audited")
    assert len(clean) == CASES - 40
    for name, brightness in (("black", 0.0), ("white", 1.0), ("grey", 0.5)):
        sure = 1 / (1 + np.exp(-20 * abs(brightness - 0.5)))
        assert one(result, "mean_confidence", name).value == pytest.approx(sure, abs=1e-6)
        change = one(result, "confidence_change", name)
        assert change.value == pytest.approx(sure - clean["confidence"].mean(), abs=1e-6)
        assert change.low is not None
        assert change.low < (change.value or 0)
        share = one(result, "confident_share", name)
        assert (share.value, share.low, share.high) == (float(sure >= 0.9),) * 3
        assert share.interval == "exact: one picture, one answer"
    falls = {name for name in STAND_INS if (one(result, "confidence_change", name).high or 0) < 0}
    assert falls == {"grey", "noise"}  # both near the brightness at which the model is least sure
    assert "falls beyond chance on 2 of 7 sets" in result.summary
    shuffled = of_set(result, "patch_shuffled")
    expected = (shuffled["confidence"] >= 0.9).mean()
    assert one(result, "confident_share", "patch_shuffled").value == pytest.approx(expected)
    pixels = torch.from_numpy(pixels_of()[40:, None])
    for name in ("noise", "inverted", "upside_down", "patch_shuffled"):
        made = STAND_INS[name].make(pixels, [f"case-{place:02d}" for place in range(40, CASES)], 3)
        sure = torch.softmax(by_brightness(made), dim=1).max(dim=1).values
        assert of_set(result, name)["confidence"].to_numpy() == pytest.approx(sure.numpy(), abs=1e-6)


def test_every_score_is_judged_as_scikit_learn_does() -> None:
    result = run(audited(Embedding(by_brightness), pixels_of()))
    names = ("msp", "max_logit", "energy", "feature_norm", "mahalanobis", "relative_mahalanobis", "knn", "vim")
    clean, judged = of_set(result, "audited"), 0
    for called in STAND_INS:
        there = of_set(result, called)
        truth = np.repeat([0, 1], [len(clean), len(there)])
        for score in names:
            values = np.concatenate((clean[score], there[score]))
            found = one(result, "auroc", called, score=score)
            assert found.value == pytest.approx(roc_auc_score(truth, values))
            assert found.low is not None
            out, kept = (one(result, name, called, score=score).value for name in ("aupr_out", "aupr_in"))
            assert out == pytest.approx(average_precision_score(truth, values))
            assert kept == pytest.approx(average_precision_score(1 - truth, -values))
            judged += 1
    assert judged == 56
    (heat,) = [chart for chart in result.charts if isinstance(chart, HeatMap)]
    assert heat.rows[0] == "largest probability (MSP)"
    assert heat.values[0][0] == one(result, "auroc", "black", score="msp").value


def test_scores_of_embeddings_are_fitted_on_training_cases_only() -> None:
    model, pixels = Embedding(by_brightness), pixels_of()
    result = run(audited(model, pixels), neighbours=3)
    known = model.embed(torch.from_numpy(pixels[:40, None])).double().numpy()
    audited_ones = model.embed(torch.from_numpy(pixels[40:, None])).double().numpy()
    labels = np.arange(40) % 2
    means = np.stack([known[labels == code].mean(axis=0) for code in (0, 1)])
    peer = LedoitWolf(assume_centered=True).fit(known - means[labels])
    expected = np.min([peer.mahalanobis(audited_ones - mean) for mean in means], axis=0)
    clean = of_set(result, "audited")
    assert clean["mahalanobis"].to_numpy() == pytest.approx(expected, rel=1e-4)
    whole = LedoitWolf().fit(known).mahalanobis(audited_ones)
    assert clean["relative_mahalanobis"].to_numpy() == pytest.approx(expected - whole, abs=1e-3)
    unit, ours = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (known, audited_ones))
    distances = np.sort(np.linalg.norm(ours[:, None] - unit[None], axis=2), axis=1)[:, 2]
    assert clean["knn"].to_numpy() == pytest.approx(distances, abs=1e-5)
    assert one(result, "auroc", "black", score="mahalanobis").value == 1.0
    assert "Scores of embeddings were fitted on 40 cases of the split 'train'." in result.caveats


def test_named_sets_need_no_labels_and_lead_the_summary() -> None:
    near, far = pixels_of(30, seed=5), 1 - pixels_of(20, seed=6)
    made = replace(
        audited(Embedding(by_brightness), pixels_of()),
        outside=Outside(near={"other ward": elsewhere(near)}, far={"black": elsewhere(far)}),
    )
    result = run(made)
    alike = one(result, "auroc", "other ward", "near", score="mahalanobis")
    assert alike.n == 40 + 30
    assert alike.low is not None
    assert alike.low < 0.5 < (alike.high or 0) < 0.75  # the same kind of images: not to be told apart
    assert one(result, "auroc", "black", "far", score="mahalanobis").value == 1.0  # a name that a stand-in has, too
    assert "Of the near sets, confidence tells “other ward” worst" in result.summary
    assert not any("No near set was named" in caveat for caveat in result.caveats)
    assert len(of_set(result, "other ward")) == 30


def test_identical_images_from_elsewhere_cannot_be_told_apart() -> None:
    pixels = pixels_of()
    made = replace(audited(Embedding(by_brightness), pixels), outside=Outside(near={"same": elsewhere(pixels[40:])}))
    result = run(made)
    for score in ("msp", "energy", "mahalanobis", "knn", "vim"):
        assert one(result, "auroc", "same", "near", score=score).value == pytest.approx(0.5)
        assert one(result, "fpr_at_95_tpr", "same", "near", score=score).value == pytest.approx(0.95)
    assert one(result, "confidence_change", "same", "near").value == pytest.approx(0.0)


def test_without_embeddings_their_scores_say_why() -> None:
    result = run(audited(Planted(by_brightness), pixels_of()))
    for score in ("feature_norm", "mahalanobis", "relative_mahalanobis", "knn", "vim"):
        found = one(result, "auroc", "noise", score=score)
        assert found.value is None
        assert found.reason == "Planted has no embeddings that can be read"
    assert one(result, "auroc", "noise", score="energy").value is not None
    (note,) = [caveat for caveat in result.caveats if caveat.startswith("Not computed")]
    assert "virtual logit (ViM); Planted has no embeddings" in note


def test_without_cases_to_fit_on_and_with_too_few_the_reason_says_what_to_add() -> None:
    alone = run(audited(Embedding(by_brightness), pixels_of(), train=0))
    assert 'split "train" or "validation"' in (one(alone, "auroc", "grey", score="knn").reason or "")
    assert one(alone, "auroc", "grey", score="feature_norm").value is not None
    few = run(audited(Embedding(by_brightness), pixels_of(), train=8))
    assert "8 cases to fit on; would be settled by at least 10" in (one(few, "auroc", "grey", score="vim").reason or "")


def test_named_reference_data_are_fitted_on_and_need_labels_by_class() -> None:
    made = audited(Embedding(by_brightness), pixels_of(), train=0)
    result = run(replace(made, outside=Outside(reference=elsewhere(pixels_of(50, seed=7)))))
    assert "has no labels" in (one(result, "auroc", "noise", score="mahalanobis").reason or "")
    assert one(result, "auroc", "noise", score="knn").value is not None
    assert "Scores of embeddings were fitted on 50 cases of the reference data." in result.caveats
    same = run(replace(made, outside=Outside(reference=made.everything), shared={}))  # the audited images themselves
    assert "not audited" in (one(same, "auroc", "noise", score="knn").reason or "")


def test_labels_of_one_class_leave_only_the_relative_distance_out() -> None:
    made = audited(Embedding(by_brightness), pixels_of())
    table = made.everything.table.assign(label="normal").astype({"label": "str"})
    result = run(replace(made, everything=replace(made.everything, table=table)))
    assert one(result, "auroc", "noise", score="mahalanobis").value is not None
    assert "of one class" in (one(result, "auroc", "noise", score="relative_mahalanobis").reason or "")


def test_a_model_with_one_output_has_no_energy() -> None:
    made = subject(np.full((SIDE, SIDE), 0.1, dtype=np.float32), pixels_of())
    result = run(replace(made, decision=Decision(1, 0.5, True)))
    for score in ("max_logit", "energy"):
        assert "one output" in (one(result, "auroc", "inverted", score=score).reason or "")
    assert one(result, "auroc", "inverted", score="msp").value is not None


def test_images_without_a_finite_answer_are_counted_and_not_scored() -> None:
    """A model that divides by the spread of the image cannot see a blank one."""

    def standardised(pixels: torch.Tensor) -> torch.Tensor:
        return by_brightness(
            (pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)) / pixels.std(dim=(1, 2, 3), keepdim=True)
        )

    result = run(audited(Planted(standardised), pixels_of()))
    for name in ("confidence_change", "confident_share"):
        assert one(result, name, "black").reason == "the model gives no finite number for these images"
    assert one(result, "auroc", "white", score="msp").value is None
    assert one(result, "auroc", "inverted", score="msp").value is not None
    assert any("black image: 40 of 40, white image: 40 of 40" in caveat for caveat in result.caveats)
    table = next(chart for chart in result.charts if isinstance(chart, Table))
    assert ("black image", "stand-in", 0, 0, None, None, "–", None) in table.rows


def test_images_without_a_top_are_not_turned_upside_down() -> None:
    result = run(replace(audited(Planted(by_brightness), pixels_of()), modality="histology"))
    assert "upside_down" not in {item.where["set"] for item in result.metrics}
    assert "Images of histology have no top, so none was turned upside down." in result.caveats
    assert "upside down" not in result.cases[0].pictures


def test_neither_the_order_nor_the_parts_nor_a_second_run_count() -> None:
    made = audited(Embedding(by_brightness), pixels_of())
    turned = replace(made.everything, table=made.everything.table.iloc[::-1])
    result = run(made)
    for again in (run(replace(made, everything=turned, shared={})), run(audited(made.model, pixels_of(), part=7))):
        for item, other in zip(result.metrics, again.metrics, strict=True):
            assert (item.name, item.where, item.n, item.reason) == (other.name, other.where, other.n, other.reason)
            assert item.value is None or item.value == pytest.approx(other.value, abs=1e-6)


def test_it_costs_the_passes_it_says() -> None:
    made = audited(Embedding(by_brightness), pixels_of(), part=40)
    _ = made.predictions
    before = made.engine.meter.forward
    run(made)
    # 4 stand-ins twice and the image's embedding, three blank pictures twice, and 40 cases to fit on twice
    assert made.engine.meter.forward - before == 9 * 40 + 6 + 2 * 40


def test_ten_images_are_enough_to_say_something_and_a_wrong_option_is_refused() -> None:
    result = run(audited(Embedding(by_brightness), pixels_of(20), train=10), cases=10)
    assert one(result, "auroc", "black", score="mahalanobis").n == 10
    with pytest.raises(ConfigError, match="neighbours is 0"):
        run(audited(Embedding(by_brightness), pixels_of(20), train=10), neighbours=0)


def test_nothing_is_fitted_on_audited_images_where_no_split_is_test() -> None:
    audit = audited(Embedding(by_brightness), pixels_of())
    table = audit.everything.table.assign(split="train")
    result = run(replace(audit, everything=replace(audit.everything, table=table)))
    assert one(result, "auroc", "noise", score="knn").value is None
    assert 'beside "test"' in str(one(result, "auroc", "noise", score="mahalanobis").reason)
    assert one(result, "auroc", "noise", score="feature_norm").value is not None


def test_no_cases_are_refused() -> None:
    for name in ("cases", "reference_cases"):
        with pytest.raises(ConfigError, match="at least 1"):
            run(audited(Embedding(by_brightness), pixels_of()), **{name: 0})
