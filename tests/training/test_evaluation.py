"""What was gained and forgotten, and whether the image is looked at: closed forms, then planted effects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evidence import CURVE, MISSING, evidence, figure
from xvision import codec
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.intervals import proportion
from xvision.methods.scores import auroc
from xvision.models.checkpoint import load_model, save_model
from xvision.models.evidence import (
    EVIDENCE,
    MAX_BYTES,
    Change,
    Control,
    Point,
    contribution,
    read_curve,
    sees_images,
    verdict,
)
from xvision.models.llm.classifier import preset
from xvision.models.protocols import Classifier
from xvision.recipe import TrainingPlan
from xvision.training.evaluation import (
    Cases,
    before_after,
    evaluate,
    evaluate_logits,
    image_blind,
    image_blind_logits,
    other_patients,
    predict,
    read_evaluation,
    site_matrix,
    sites_of,
    write_evaluation,
)
from xvision.training.loop import Arrays, finetune

CLASSES = ("normal", "lesion")
SIZE = 16


def spots(count: int, seed: int, *, sites: tuple[str, ...] = ("A",)) -> AuditDataset:
    """A bright square is a lesion at site A; at site B it is the dark square that is one."""
    generator = np.random.default_rng(seed)
    labels, site = np.arange(count) % 2, np.array(sites)[np.arange(count) // 2 % len(sites)]
    pixels = generator.integers(100, 140, (count, 1, SIZE, SIZE)).astype(np.int64)
    for index in range(count):
        row, column = generator.integers(0, SIZE - 5, 2)
        sign = (1 if labels[index] else -1) * (1 if site[index] == "A" else -1)
        pixels[index, 0, row : row + 5, column : column + 5] += 80 * sign
    ids = [f"case-{index}" for index in range(count)]
    table = pd.DataFrame(
        {"label": [CLASSES[code] for code in labels], "patient": ids, "split": "test", "site": site},
        index=pd.Index(ids, name="id"),
    )
    images = (pixels / 255).astype(np.float32)
    return AuditDataset(table, ("site",), ArraySource(ids, images))


def arrays(data: AuditDataset, model: Classifier) -> Arrays:
    pixels = np.rint(data.pixels(data.ids, model.input) * 255).astype(np.uint8)
    return Arrays(pixels, np.array(data.label_codes(CLASSES)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Classifier]:
    """Untrained; trained at site A; that one re-tuned at site B without a look back."""
    root = tmp_path_factory.mktemp("models")
    network = preset("tiny-qwen3", image_size=SIZE, patch_size=8, classes=CLASSES, seed=0)
    save_model(network, root / "untrained")
    plan = TrainingPlan(epochs=4, batch_size=16, learning_rate=2e-3)
    for name, site in (("before", "A"), ("after", "B")):
        data = [arrays(spots(160, seed, sites=(site,)), load_model(root / "untrained")) for seed in (1, 2)]
        finetune(network, *data, plan, root / name)
    return {name: load_model(root / name, device="cpu") for name in ("untrained", "before", "after")}


def test_a_model_is_evaluated_with_delongs_and_wilsons_intervals(models: dict[str, Classifier]) -> None:
    data = spots(60, 3, sites=("A", "B"))
    found = evaluate(models["before"], data, CLASSES, group="site")
    logits, labels = predict(models["before"], data), data.label_codes(CLASSES)
    patients = data.table["patient"].to_numpy(dtype=str)
    area = auroc(logits[:, 1] - logits[:, 0], labels == 1, patients)
    assert (found.auroc.value, found.auroc.low, found.auroc.high, found.auroc.n) == area[:4]
    share = proportion(logits.argmax(1) == labels, patients)
    assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == share[:3]
    assert found.balanced_accuracy.value == pytest.approx(share.value)  # as many of either class
    assert found.cases == 60
    assert found.worst_group is not None
    assert (found.worst_group.level, found.worst_group.measure, found.worst_group.groups) == ("B", "auroc", 2)


def test_groups_of_one_class_are_compared_in_accuracy() -> None:
    labels = np.repeat([0, 1], 20)
    logits = np.tile([1.0, 0.0], (40, 1))
    found = evaluate_logits(logits, Cases(labels, np.arange(40)), group="sex", levels=np.where(labels == 1, "F", "M"))
    assert found.worst_group is not None
    assert (found.worst_group.level, found.worst_group.measure, found.worst_group.figure.value) == (
        "F",
        "accuracy",
        0.0,
    )


def test_training_is_held_against_the_start(models: dict[str, Classifier]) -> None:
    data = spots(80, 4)
    cases = Cases(data.label_codes(CLASSES), np.arange(80))
    after, before = predict(models["before"], data), predict(models["untrained"], data)
    found = before_after("test", after, before, cases)
    assert found.change is not None
    assert found.before is not None
    assert found.change.figure.value == pytest.approx((found.after.auroc.value or 0) - (found.before.auroc.value or 0))
    assert verdict(found.change.figure) == "better"
    assert before_after("test", after, None, cases).change is None


def test_what_retuning_forgets_is_in_the_matrix(models: dict[str, Classifier]) -> None:
    """Planted: what is a lesion at site A is none at site B."""
    sites = sites_of(spots(160, 5, sites=("A", "B")), "site")
    found = site_matrix(models, sites, CLASSES)
    assert (found.models, found.sites) == (("untrained", "before", "after"), ("A", "B"))
    verdicts = {site: verdict(item.figure) for site, item in zip(found.sites, found.changes, strict=True)}
    assert verdicts == {"A": "worse", "B": "better"}
    at_home = found.cells[1][0].auroc.value
    assert at_home is not None
    assert at_home > 0.95
    alone = site_matrix({"after": models["after"]}, sites, CLASSES)
    assert alone.changes == ()
    narrow = site_matrix(models, {"A": sites["A"]}, CLASSES).changes[0].figure
    wide = found.changes[0].figure
    assert narrow.value == wide.value
    assert (narrow.high or 0) - (narrow.low or 0) < (wide.high or 0) - (wide.low or 0)  # two sites hold together


def test_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no column 'hospital' to tell sites apart"):
        sites_of(spots(4, 0), "hospital")


def test_with_wrong_images_a_trained_model_falls_to_chance(models: dict[str, Classifier]) -> None:
    data = spots(120, 6)
    found = image_blind(models["before"], data, CLASSES)
    assert found.accuracy.value is not None
    assert found.accuracy.value > 0.9
    assert found.shuffled.low is not None
    assert found.shuffled.high is not None
    assert found.shuffled.low <= found.chance <= found.shuffled.high
    assert sees_images(found) == "it falls to chance with the wrong image: its answers come from the image"
    assert image_blind(models["before"], data, CLASSES, logits=predict(models["before"], data)) == found


def test_chance_is_the_mean_over_all_exchanges() -> None:
    """All 9 exchanges of 4 images in which nobody keeps the own one."""
    labels, decided = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    exchanges = [order for order in permutations(range(4)) if all(place != index for index, place in enumerate(order))]
    expected = np.mean([decided[list(order)] == labels for order in exchanges])
    logits = np.eye(2)[decided]
    order = other_patients(np.arange(4), 0)
    assert order is not None
    assert image_blind_logits(logits, logits[order], Cases(labels, np.arange(4))).chance == pytest.approx(expected)
    both = np.eye(2, dtype=np.float32)[labels]
    several = image_blind_logits(2 * np.eye(2)[decided] - 1, None, Cases(both, np.arange(4)))
    assert several.chance == pytest.approx(expected)  # yes or no of two findings that exclude each other


def test_a_model_that_answers_without_the_image_is_found_out() -> None:
    labels = np.arange(100) % 2
    known = np.eye(2)[labels] * 4
    assert sees_images(image_blind_logits(known, known, Cases(labels, np.arange(100)))).startswith(
        "with the wrong image it stays better than chance"
    )
    constant = np.tile([1.0, 0.0], (100, 1))
    assert sees_images(image_blind_logits(constant, constant, Cases(labels, np.arange(100)))) == (
        "it does no better with the right image than with a wrong one"
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 5))
def test_nobody_is_given_an_image_of_their_own(owners: list[int], seed: int) -> None:
    patients = np.array(owners)
    order = other_patients(patients, seed)
    if order is None:
        assert 2 * np.bincount(patients).max() > len(patients)
        return
    assert sorted(order) == list(range(len(patients)))
    assert not (patients[order] == patients).any()


def test_images_of_one_patient_cannot_be_exchanged() -> None:
    found = image_blind_logits(np.eye(2)[[0, 1, 0]], None, Cases(np.array([0, 1, 0]), np.array([1, 1, 1])))
    assert found.shuffled.reason == "one patient has more than half of the images"
    assert sees_images(found) == "not decided (one patient has more than half of the images)"
    with pytest.raises(DataError, match="1 images cannot be exchanged"):
        image_blind_logits(np.eye(2)[[0]], None, Cases(np.array([0]), np.array([1])))


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (0.1, 0.05, "better"), (-0.1, 0.05, "worse"), (0.01, 0.009, "equivalent"), (0.0, 0.02, "equivalent"),
        (0.01, 0.02, "not decided"), (-0.01, 0.02, "not decided"),
    ],
)  # fmt: skip
def test_verdicts_follow_from_interval_and_margin(value: float, half: float, expected: str) -> None:
    assert verdict(figure(value, half), 0.02) == expected
    assert verdict(MISSING) == "not decided"


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (0.1, 0.05, "the body adds"), (-0.1, 0.05, "worse than stem only"), (0.005, 0.01, "no better than stem only"),
        (-0.02, 0.03, "no better than stem only"), (0.02, 0.03, "not decided"),
    ],
)  # fmt: skip
def test_contributions_follow_from_interval_and_margin(value: float, half: float, expected: str) -> None:
    control = Control("stem only", figure(0.7), figure(0.7), Change("auroc", figure(value, half)))
    assert contribution(control, 0.02) == expected
    assert contribution(replace(control, gain=Change("auroc", MISSING))) == "not decided (one class only)"


def test_the_record_reads_back_equal_and_is_bound_to_the_weights(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    record = evidence("f" * 64)
    write_evaluation(tmp_path, record)
    assert read_evaluation(tmp_path, fingerprint="f" * 64) == record
    with pytest.raises(
        ModelError, match=r"about other weights \(fingerprint ffffffffffff…, the model's is eeeeeeeeeeee…\)"
    ):
        read_evaluation(tmp_path, fingerprint="e" * 64)


Spoil = Callable[[dict[str, object]], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data.pop("schema"), "schema None, but this version reads schema 1"),
        (lambda data: data.update(schema="x" * 99), "schema 'xxx"),
        (lambda data: data.update(classes="lesion"), "classes is 'lesion'"),
        (lambda data: data.update(finger="x"), "unknown key 'finger'"),
        (lambda data: data.update(policy="x" * 999), "has 999 characters, at most 500"),
        (lambda data: data.update(policy="\ud800"), "invalid JSON"),
        (lambda data: data.update(warnings=["w"] * 99), "99 entries were given, at most 64"),
        (lambda data: data["blind"].update(chance=float("nan")), "chance is nan"),
        (lambda data: data["blind"]["drop"].update(low=9.0), "does not lie in the interval"),
        (lambda data: data["blind"]["drop"].update(value=float("inf")), "is no finite estimate"),
        (lambda data: data["blind"]["drop"].update(n=10**12), "is no finite estimate"),
        (lambda data: data["blind"]["drop"].update(n=0), "needs n and the method"),
        (lambda data: data["blind"]["drop"].update(value=None), "a missing value needs a reason"),
        (lambda data: data["sites"][0].update(models=["one"]), "the cells are not 1 models by 2 sites"),
        (lambda data: data["sites"][0].update(sites=["A", "A"]), "a name occurs twice"),
        (lambda data: data["sites"][0].update(changes=[]), "0 changes were given for 2 sites"),
        (lambda data: data["controls"]["rows"].append(data["controls"]["rows"][0]), "a control is named twice"),
        (lambda data: data["controls"]["rows"][0].update(trained=-1), "-1 is no number of weights"),
        (lambda data: data["splits"].append(data["splits"][0]), "a split or column occurs twice"),
    ],
)
def test_a_spoilt_record_is_refused_with_the_reason(spoil: Spoil, message: str, tmp_path: Path) -> None:
    data = codec.plain(evidence("f" * 64))
    spoil(data)
    (tmp_path / EVIDENCE).write_text(json.dumps(data))
    with pytest.raises(ModelError, match=message):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "not readable JSON"), (b"[]", "not a JSON object"), (b"\xff\xfe", "not readable JSON"),
        (b'{"schema": ' + b"9" * 9999 + b"}", "not readable JSON"), (b" " * (MAX_BYTES + 1), "more than 4 MiB"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / EVIDENCE).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_evaluation(tmp_path)


def test_a_folder_in_place_of_the_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / EVIDENCE).mkdir()
    with pytest.raises(ModelError, match="no regular file"):
        read_evaluation(tmp_path)


def test_the_learning_curve_is_read_from_the_log(tmp_path: Path) -> None:
    assert read_curve(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text(CURVE)
    found = read_curve(tmp_path)
    assert found is not None
    assert found.loss == (Point(0.5, 0.7), Point(1.0, 0.6), Point(2.0, 0.4))
    assert found.auroc == (Point(1.0, 0.7),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2 is no JSON object"), ("[1]", "line 2 is no JSON object"),
        ('{"event": "steps", "epoch": 1, "step": 1, "loss": NaN}', "loss is nan, not a number"),
        ('{"event": "steps", "epoch": true, "step": 1, "loss": 1}', "epoch is True, not a number"),
        ('{"event": "epoch", "epoch": 1, "step": 1, "auroc": "high"}', "auroc is 'high', not a number"),
        ('{"event": "steps", "epoch": 1, "loss": 1}', "step is None, not a number"),
    ],
)  # fmt: skip
def test_a_spoilt_log_is_refused_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "other"}\n' + line)
    with pytest.raises(ModelError, match=message):
        read_curve(tmp_path)
