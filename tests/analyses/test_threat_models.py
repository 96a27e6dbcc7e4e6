"""Other threats on a linear model, where the rates have closed forms; on a black box and a reader of texts; at a known cost."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analyses.subjects import SIDE, as_black_box, subject
from xvision.analyses.threat_models import threat_models
from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.plausible import low_pass
from xvision.attacks.spatial import Grid, moved
from xvision.attacks.universal import tuning_half, universal
from xvision.attacks.wording import variants
from xvision.audit import Audit
from xvision.charts import Forest, Images, Table
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.result import Metric, Result

COUNT = 30
WEIGHTS = np.random.default_rng(2).normal(size=(SIDE, SIDE)).astype(np.float32)
WEIGHTS -= WEIGHTS.mean()
EPSILONS = (0.01, 0.04)
FAST: dict[str, Any] = {
    "rotations": (10.0,),
    "shifts": (0.1,),
    "scales": (0.9,),
    "combinations": 8,
    "epsilons": EPSILONS,
    "steps": 8,
}


def pictures(spread: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(1).random((COUNT, SIDE, SIDE))
    return (0.5 + spread * (noise - 0.5)).astype(np.float32)


def audit_of(pixels: np.ndarray, weights: np.ndarray = WEIGHTS) -> Audit:
    found = subject(weights, pixels)
    found.task = "threat_models"
    return found


def signed(labels: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N,) how far the log-odds are on the right side of the threshold."""
    odds = (pixels * WEIGHTS).sum((1, 2)).astype(np.float64)
    return np.where(labels == 1, odds, -odds)


def found(result: Result, **where: str | float) -> Metric:
    return next(item for item in result.metrics if {**where} == dict(item.where))


@pytest.fixture(scope="module")
def small() -> tuple[Audit, np.ndarray, Result]:
    """Images well inside the display window, so that no box binds."""
    pixels = pictures(0.3)
    audit = audit_of(pixels)
    return audit, pixels, threat_models(audit, **FAST)


def test_shading_and_the_window_break_what_the_closed_form_says(small: tuple[Audit, np.ndarray, Result]) -> None:
    audit, pixels, result = small
    margin = signed(audit.labels, pixels)
    right = margin > 0
    low = low_pass(SIDE, SIDE, 0.02, torch.device("cpu"))
    length = float(low.projected(torch.from_numpy(WEIGHTS)[None, None]).norm())
    for epsilon in EPSILONS:
        for attack, norm, gain in (
            ("low frequency", "l2", epsilon * SIDE * length),
            ("inside the window", "linf", epsilon * float(np.abs(WEIGHTS).sum())),
        ):
            item = found(result, attack=attack, norm=norm, epsilon=epsilon)
            assert item.value == pytest.approx((margin[right] < gain).mean(), abs=1e-9)
            assert item.n == right.sum()
    assert 0 < (found(result, attack="inside the window", norm="linf", epsilon=0.01).value or 0) < 1


def test_what_is_black_or_white_stays_in_the_window() -> None:
    pixels = pictures(0.3)
    saturated = np.random.default_rng(5).random(pixels.shape) < 0.5
    pixels[saturated] = np.random.default_rng(6).integers(0, 2, saturated.sum())
    audit = audit_of(pixels)
    margin = signed(audit.labels, pixels)
    gain = (np.abs(WEIGHTS) * ~saturated).sum((1, 2))
    result = threat_models(audit, **FAST)
    for epsilon in EPSILONS:
        item = found(result, attack="inside the window", norm="linf", epsilon=epsilon)
        assert item.value == pytest.approx((margin < epsilon * gain)[margin > 0].mean())
    assert 0 < (item.value or 0) < (margin < 0.04 * np.abs(WEIGHTS).sum())[margin > 0].mean()


def test_the_summary_does_not_speak_of_the_images_that_were_fitted() -> None:
    """Even images, which no move changes: those of the tuning half break, the others do not."""
    weights = WEIGHTS + 0.05
    gain = 0.04 * np.abs(weights).sum()
    ill = np.arange(1, COUNT, 2)
    pixels = np.ones((COUNT, SIDE, SIDE), dtype=np.float32) * 0.99
    audit = replace(audit_of(pixels, weights), decision=Decision(1, 0.5, True, ("missed disease",)))
    tuning = tuning_half(audit.patients[ill], audit.rng("universal"), 200)
    pixels[ill] = (np.where(tuning, 0.6, 1.1) * gain / weights.sum())[:, None, None]
    assert pixels.max() < 1.0
    audit = replace(audit_of(pixels, weights), decision=audit.decision)
    result = threat_models(audit, **{**FAST, "patch_share": 0.002}, least=0.6)
    assert found(result, attack="universal", norm="linf", epsilon=0.04, images="fitted").value == 1.0
    assert found(result, attack="universal", norm="linf", epsilon=0.04, images="held out").value == 0.0
    assert "No threat breaks 0.600 of them" in result.summary


def test_a_patch_breaks_what_trying_every_place_breaks() -> None:
    pixels = pictures()
    audit = audit_of(pixels)
    result = threat_models(audit, **{**FAST, "patch_share": 9 / SIDE**2})
    margin = signed(audit.labels, pixels)
    sign = np.where(audit.labels == 1, -1.0, 1.0)[:, None, None]
    gain = np.maximum(sign * WEIGHTS * (1 - pixels), -sign * WEIGHTS * pixels)
    places = itertools.product(range(SIDE - 2), repeat=2)
    best = np.max([gain[:, top : top + 3, left : left + 3].sum((1, 2)) for top, left in places], axis=0)
    right = margin > 0
    expected = (margin[right] < best[right]).mean()
    assert found(result, attack="patch", share=9 / SIDE**2).value == pytest.approx(expected)
    assert 0 < expected < 1


def test_moves_break_what_the_grid_breaks() -> None:
    pixels = pictures(0.3)
    audit = audit_of(pixels)
    right = signed(audit.labels, pixels) > 0
    moves = {"rotations": (1.0,), "shifts": (0.01,), "scales": (0.99,), "combinations": 4}
    result = threat_models(audit, **{**FAST, **moves})
    images = torch.from_numpy(pixels[right])[:, None]
    broken = {
        each: signed(audit.labels[right], moved(images, [each] * len(images))[:, 0].numpy()) < 0
        for each in Grid((1.0,), (0.01,), (0.99,), 4).transformations()
    }
    for name in ("rotation", "shift", "scale"):
        hits = np.any([hit for each, hit in broken.items() if each.family == name], axis=0)
        assert found(result, attack=name, severity=1).value == pytest.approx(hits.mean())
    every = np.any(list(broken.values()), axis=0)
    assert found(result, attack="rotation, shift and scale", severity=1).value == pytest.approx(every.mean())
    assert 0 < every.mean() < 1


def test_the_universal_perturbation_is_judged_on_other_patients(small: tuple[Audit, np.ndarray, Result]) -> None:
    audit, pixels, _ = small
    one = replace(audit, decision=Decision(1, 0.5, True, ("missed disease",)))
    margin = signed(one.labels, pixels)
    right = (margin > 0) & (one.labels == 1)
    result = threat_models(one, **FAST)
    for epsilon in EPSILONS:
        where = {"attack": "universal", "norm": "linf", "epsilon": epsilon}
        fitted, held = (found(result, **where, images=part) for part in ("fitted", "held out"))
        control = found(result, **{**where, "attack": "universal control"}, images="held out")
        assert (fitted.n, held.n, control.n) == (right.sum() // 2, right.sum() - right.sum() // 2, held.n)
        hits = (fitted.n or 0) * (fitted.value or 0.0) + (held.n or 0) * (held.value or 0.0)
        assert hits == pytest.approx((margin[right] < epsilon * np.abs(WEIGHTS).sum()).sum())
        assert (control.value or 0.0) <= (held.value or 0.0)


def test_images_of_one_patient_stay_in_one_half() -> None:
    audit = audit_of(pictures(0.3))
    table = audit.everything.table.assign(patient=[f"p{place // 6}" for place in range(COUNT)])
    clustered = replace(audit, everything=replace(audit.everything, table=table))
    result = threat_models(clustered, **FAST)
    fitted, held = (
        found(result, attack="universal", norm="linf", epsilon=0.04, images=part) for part in ("fitted", "held out")
    )
    assert (fitted.n, held.n) == (2, 3)
    assert held.interval == "Wilson, patient-clustered"


def test_a_larger_budget_and_severity_never_break_less() -> None:
    options = {**FAST, "rotations": (4.0, 12.0), "shifts": (0.05, 0.1), "scales": (0.85, 0.95)}
    result = threat_models(audit_of(pictures()), **options)
    for attack in ("rotation", "shift", "scale", "rotation, shift and scale"):
        first, second = (found(result, attack=attack, severity=rank).value for rank in (1, 2))
        assert (first or 0) <= (second or 0)
    together = found(result, attack="rotation, shift and scale", severity=2).value or 0
    assert together >= max(
        found(result, attack=attack, severity=2).value or 0 for attack in ("rotation", "shift", "scale")
    )
    for attack, norm in (("low frequency", "l2"), ("inside the window", "linf")):
        values = [found(result, attack=attack, norm=norm, epsilon=epsilon).value or 0 for epsilon in EPSILONS]
        assert values == sorted(values)


def test_the_pictures_are_of_broken_right_decisions(small: tuple[Audit, np.ndarray, Result]) -> None:
    audit, _, result = small
    assert result.cases
    names = {str(name): place for place, name in enumerate(audit.ids)}
    for case in result.cases:
        assert case.facts["label"] == case.facts["decision"]
        assert case.facts["broken by"]
        assert audit.correct[names[case.id]]
        assert (case.pictures["image"] != case.pictures["broken image"]).any()
    table = result.tables["threat_models"]
    told = table[(table.threat == "Rotation, shift and scale, severity 1") & table.broken]
    shown = {case.id: case.facts["broken by"] for case in result.cases}
    for name, how in zip(told.id, told.how, strict=True):
        assert shown.get(name, how) == how


def test_the_table_counts_what_the_metrics_say(small: tuple[Audit, np.ndarray, Result]) -> None:
    _, _, result = small
    forest, table, gallery = result.charts
    assert isinstance(forest, Forest)
    assert isinstance(table, Table)
    assert isinstance(gallery, Images)
    rates = result.tables["threat_models"].groupby("threat").broken.mean()
    for row, mark, item in zip(table.rows, forest.marks, result.metrics, strict=True):
        assert row[0] == mark.label
        if item.value is None:
            assert (row[3], row[4], mark.value) == (None, None, None)
        else:
            assert item.value == pytest.approx(int(row[3] or 0) / int(row[4] or 1)) == pytest.approx(rates[mark.label])


def test_the_summary_names_what_needs_least(small: tuple[Audit, np.ndarray, Result]) -> None:
    audit, _, result = small
    assert "The cheapest threat that breaks at least 0.100 of them is" in result.summary
    assert "(needs the decision, some tries)" in result.summary
    none = threat_models(audit, **FAST, least=1.5)
    assert "No threat breaks 1.500 of them" in none.summary
    assert "not broken by these changes" in none.summary


def test_without_gradients_it_says_what_was_not_tried(small: tuple[Audit, np.ndarray, Result]) -> None:
    audit, _, result = small

    blind = threat_models(as_black_box(audit), **FAST)
    for item, seen in zip(blind.metrics, result.metrics, strict=True):
        assert item.where == seen.where
        if "severity" in item.where:
            assert item.value == seen.value
        elif item.where["attack"] != "wording":
            assert item.value is None
            assert "Opaque gives no gradients" in (item.reason or "")
            assert "not known" in (item.reason or "")
    assert "cheapest threat" in blind.summary


def test_without_a_right_decision_there_is_nothing_to_break(small: tuple[Audit, np.ndarray, Result]) -> None:
    audit, pixels, _ = small
    wrong = (signed(audit.labels, pixels) < 0).tolist()
    table = audit.everything.table.assign(split=["all" if each else "train" for each in wrong])
    hopeless = replace(audit, everything=replace(audit.everything, table=table[wrong]))
    result = threat_models(hopeless, **FAST)
    assert all(item.value is None and item.reason for item in result.metrics)
    assert result.summary.endswith("No threat was tried.")
    assert not result.cases


def reading_audit(texts: list[str], column: bool = True) -> Audit:
    module = preset("tiny-qwen3", image_size=SIDE, text_tokens=10, texts=texts, seed=0)
    model = adapt(module, preprocessing_of(module.config), source="memory")
    count = len(texts)
    ids = [f"case-{place:02d}" for place in range(count)]
    pixels = np.random.default_rng(4).random((count, 1, SIDE, SIDE)).astype(np.float32)
    logits = model.with_text(texts).logits(torch.from_numpy(pixels))
    odds = (logits[:, 1] - logits[:, 0]).detach().numpy()
    middle = float(np.sort(odds)[count // 2 - 1 : count // 2 + 1].mean())
    columns = {
        "label": [model.classes[int(each)] for each in odds >= middle],
        "patient": ids,
        "split": "all",
        "image": ids,
    }
    table = pd.DataFrame(columns | ({"text": texts} if column else {}), index=pd.Index(ids, name="id"))
    decision = Decision(1, float(1 / (1 + np.exp(-middle))), True)
    data = AuditDataset(table, (), ArraySource(ids, pixels))
    return Audit(model, data, decision, 3, Engine(part=4), (), (), task="threat_models")


TEXTS = [
    "cough, fever. male smoker",
    "fever today. chest pain",
    "",
    "cough. fever",
    "male, smoker",
    "chest pain, fever",
]


def test_a_reader_of_texts_is_read_with_other_words() -> None:
    audit = reading_audit(TEXTS)
    assert audit.correct.all()
    result = threat_models(audit, **{**FAST, "steps": 2, "synonyms": (("fever", "smoker"),)})
    item = found(result, attack="wording", edits=1)
    broken = []
    for place, words in enumerate(TEXTS):
        goal = class_goal(torch.tensor(audit.labels[[place]]), 2, audit.decision)
        pixels = torch.from_numpy(audit.pixels([place]))
        case = cases_of(audit.model.logits, pixels, goal, keys=("a",), seed=0)
        others = [each.text for each in variants(words, {"fever": "smoker"}, 1)]
        if others:
            read = [case.goal.broken(audit.model.with_text([each]).logits(pixels)).item() for each in others]
            broken.append(any(read))
    assert (item.n, item.value) == (5, pytest.approx(np.mean(broken)))
    assert any(broken)
    told = result.tables["threat_models"]
    assert set(told[(told.threat == "Wording, edits 1") & told.broken].how) <= {
        "clauses swapped", "sentences swapped", "full stop", "fever → smoker", "smoker → fever"
    }  # fmt: skip
    tuning = tuning_half(audit.patients, audit.rng("universal"), 200)
    fitted, held = (with_texts(audit, rows) for rows in (tuning, ~tuning))
    by_hand = universal([fitted], [held], "linf", 0.04, steps=2)
    for part, hits in (("held out", by_hand.held_out), ("fitted", by_hand.tuned)):
        item = found(result, attack="universal", norm="linf", epsilon=0.04, images=part)
        assert (item.n, item.value) == (3, pytest.approx(hits.float().mean().item()))
    assert by_hand.tuned.any()


def with_texts(audit: Audit, rows: np.ndarray) -> Cases:
    places = np.flatnonzero(rows)
    bound = audit.model.with_text([TEXTS[place] for place in places])
    goal = class_goal(torch.from_numpy(audit.labels[places]), 2, audit.decision)
    return cases_of(bound.logits, torch.from_numpy(audit.pixels(places)), goal, keys=audit.ids[places], seed=3)


def test_texts_that_are_not_there_are_a_reason() -> None:
    options = {**FAST, "steps": 1}
    result = threat_models(reading_audit(TEXTS, column=False), **options)
    assert found(result, attack="wording", edits=1).reason == "the data have no column text"
    result = threat_models(reading_audit([""] * 3 + ["  "] * 2 + ["a"], column=True), **options)
    assert found(result, attack="wording", edits=1).n == 1
    result = threat_models(audit_of(pictures()), **options)
    assert found(result, attack="wording", edits=1).reason == "the model reads no text beside the image"


def test_at_the_default_options_a_case_costs_at_most_300_passes() -> None:
    """Nothing breaks a decision this far from the threshold, so every case meets everything."""
    audit = audit_of(pictures(0.5), np.ones((SIDE, SIDE), dtype=np.float32))
    result = threat_models(audit)
    assert all(item.value in (0.0, None) for item in result.metrics)
    right = found(result, attack="rotation", severity=3).n or 0
    shown = int(audit.correct[audit.showcase].sum())
    per_case = (audit.engine.meter.forward - COUNT) / (right + shown)
    assert 200 < per_case <= 300
    assert "No threat breaks 0.100 of them" in result.summary


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"rotations": (0.0,)}, "give degrees above 0"),
        ({"epsilons": (0.02, 0.01)}, "give at least one, rising"),
        ({"patch_share": 2.0}, "give a share"),
        ({"frequencies": 0.0}, "share of 0.0 of the frequencies"),
        ({"positions": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        threat_models(audit_of(pictures()), **{**FAST, **wrong})
