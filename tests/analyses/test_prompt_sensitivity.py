"""Models that go by the wording, by the image, or by a planted part of both; and a real vision-language model."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analyses.subjects import SIDE, linear_model, subject
from tests.models.test_llm_bound import adapted
from tests.models.test_llm_text import reader
from tests.models.vlm_builders import SIDE as WIDE
from tests.models.vlm_builders import load, save_vlm
from xvision.analyses.prompt_sensitivity import prompt_sensitivity
from xvision.audit import Audit
from xvision.config import PromptPlan
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.prompt_variants import SOURCES
from xvision.models.network import NetworkClassifier
from xvision.models.vlm.prompts import Question
from xvision.result import Metric, NotApplicable, Record, Result
from xvision.store import Writer, open_run

LABELS = {"normal": "clear", "lesion": "lesion"}


class Answering(NetworkClassifier):
    """Log-odds of a lesion: ``sight`` × (mean brightness − 0.5), + ``first`` where its words are listed before the others.

    ``shouting`` is added where its words are in large letters, ``grain`` × the deviation of the pixels is taken off.
    """

    plan = PromptPlan(labels=LABELS)
    sight, first, shouting, grain = 0.0, 0.0, 0.0, 0.0
    said = ""

    def with_question(self, question: Question, labels: Mapping[str, str]) -> Answering:
        twin = copy(self)
        twin.said, twin.plan = question.text, replace(self.plan, labels=labels)
        return twin

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        words = list(self.plan.labels.values())
        places = [self.said.find(word) for word in words]
        odds = self.sight * (pixels.mean(dim=(1, 2, 3)) - 0.5)
        odds = odds + self.first * (1.0 if places[1] < places[0] else -1.0)
        odds = odds + self.shouting * float(words[1].isupper()) - self.grain * pixels.std(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(odds), odds], dim=1)


def audit_of(cases: int = 40, **planted: float) -> Audit:
    """Half are brighter, 0.6 beside 0.4, and lesions."""
    pixels = np.full((cases, SIDE, SIDE), 0.4)
    pixels[1::2] = 0.6
    plain = linear_model(np.ones((SIDE, SIDE), dtype=np.float32))
    model = Answering(plain.module, plain.facts, plain.device)
    for name, value in planted.items():
        setattr(model, name, value)
    audit = subject(np.ones((SIDE, SIDE), dtype=np.float32), pixels)
    return replace(audit, model=model, task="prompt_sensitivity", groups=("site",), acquisition=())


def found(result: Result, name: str, **where: str) -> Metric:
    (one,) = [item for item in result.metrics if item.name == name and dict(item.where) == where]
    return one


def rates(result: Result, image: str = "as it is") -> dict[str, float | None]:
    return {
        str(item.where["variant"]): item.value
        for item in result.metrics
        if item.name == "flip_rate" and item.where["image"] == image and len(item.where) == 2
    }


def test_a_model_that_goes_by_the_image_is_not_changed_by_words() -> None:
    result = prompt_sensitivity(audit_of(sight=30.0), resamples=50)
    flips = rates(result)
    assert len(flips) >= 8
    assert {"options reversed", "labels: large letters", "template radiology", "any other wording"} <= flips.keys()
    assert set(flips.values()) == {0.0}
    assert set(rates(result, "mild noise").values()) == {0.0}
    assert found(result, "consistency").value == found(result, "deployed_with_majority").value == 1.0
    assert found(result, "accuracy_range", chosen_on="other patients").value == 0.0
    assert found(result, "variance_share", source="words").value == pytest.approx(0.0, abs=1e-9)
    assert found(result, "variance_share", source="cases").value > 0.99
    assert found(result, "auroc", variant="deployed", image="as it is").value == 1.0
    assert "At least one of" in result.summary


def test_a_perfect_balanced_accuracy_has_width_and_a_group_called_variant_keeps_its_levels() -> None:
    audit = audit_of(sight=30.0)
    table = audit.everything.table.assign(variant=np.where(np.arange(40) < 20, "old", "new"))
    audit = replace(audit, everything=replace(audit.everything, table=table), decision=Decision(), groups=("variant",))
    result = prompt_sensitivity(audit, resamples=20)
    clean = found(result, "balanced_accuracy", variant="deployed", image="as it is")
    assert clean.value == 1.0
    assert clean.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-4)  # Wilson for 20 a class
    told = {"variant": "any other wording", "image": "as it is", "group variant": "old"}
    assert found(result, "flip_rate", **told).n == 20


def test_a_model_that_follows_the_first_option_is_found() -> None:
    result = prompt_sensitivity(audit_of(first=2.0), resamples=50)
    flips = rates(result)
    assert flips["options reversed"] == 1.0
    unlisted = {"template open", "template caption"}  # neither is named: neither comes first
    assert {name for name, rate in flips.items() if rate} <= {"options reversed", "any other wording", *unlisted}
    assert found(result, "consistency").value == 0.0
    agreement = found(result, "majority_agreement")  # the same in all cases, but not known to be so in others
    assert agreement.low < agreement.value < agreement.high
    assert found(result, "variance_share", source="words").value == pytest.approx(1.0)
    assert found(result, "flip_rate", variant="any other wording", image="as it is", site="A").value == 1.0
    (table,) = [chart for chart in result.charts if chart.title == "Cases that the wording changes most"]
    assert "options reversed" in table.rows[0][-1]


def test_a_model_that_noise_changes_and_words_do_not_is_told_from_the_other() -> None:
    result = prompt_sensitivity(audit_of(sight=30.0, grain=120.0), resamples=50)
    assert set(rates(result).values()) == {0.0}
    noisy = rates(result, "mild noise")
    assert noisy.keys() >= {"deployed", "options reversed"}
    assert set(noisy.values()) == {0.5}  # lesions had 3; noise of 0.04 takes off almost 5
    shares = {source: found(result, "variance_share", source=source).value for source in SOURCES}
    assert shares["words"] == pytest.approx(0.0, abs=1e-9)
    assert shares["corruption"] == pytest.approx(2.4**2 / (2.4**2 + 3**2), abs=0.02)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_shares_are_those_of_counting() -> None:
    result = prompt_sensitivity(audit_of(sight=30.0, shouting=5.0), resamples=50)
    flips = rates(result)
    assert flips["labels: large letters"] == 0.5  # −3 + 5 is positive, 3 + 5 was
    assert flips["labels: first letter large"] == 0.0
    rows = result.tables["prompt_sensitivity"]
    plain = rows[rows["image"] == "as it is"]
    wide = plain.pivot_table(index="id", columns="variant", values="decision", aggfunc="first")
    alike = (wide.nunique(axis=1) == 1).mean()
    majority = wide.apply(lambda row: row.value_counts().max() / len(row), axis=1).mean()
    assert found(result, "consistency").value == pytest.approx(alike) == 0.5
    assert found(result, "majority_agreement").value == pytest.approx(majority)
    values = rows["log_odds"]
    means = rows.groupby("id")["log_odds"].mean()
    assert found(result, "variance_share", source="cases").value == pytest.approx(
        means.var(ddof=0) / values.var(ddof=0)
    )
    words = rows.groupby(["id", "variant"])["log_odds"].mean().groupby("id").var(ddof=0).mean()
    assert found(result, "variance_share", source="words").value == pytest.approx(words / values.var(ddof=0))
    assert found(result, "log_odds_sd", source="words").value == pytest.approx(words**0.5)
    assert found(result, "accuracy", variant="labels: large letters", image="as it is").value == 0.5
    assert found(result, "accuracy_range", chosen_on="the same cases").value == 0.5


def test_ones_own_words_and_templates_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "x"\ntext = "Say {options}: which?"')
    result = prompt_sensitivity(
        audit_of(sight=30.0), templates=(str(path), "finding"), synonyms={"lesion": ("lesion", "nodule")}, resamples=20
    )
    flips = rates(result)
    # The same template again, and the same words again, are asked again.
    assert [flips[name] for name in ("template mine", "template finding", "lesion: lesion", "lesion: nodule")] == [
        0.0
    ] * 4
    (table,) = [chart for chart in result.charts if chart.title == "Wordings"]
    assert any("Say clear or lesion: which? → clear / lesion" in str(row[-1]) for row in table.rows)
    with pytest.raises(ConfigError, match=r"synonyms names 'lesoin'.*lesion"):
        prompt_sensitivity(audit_of(), synonyms={"lesoin": ("x",)})
    with pytest.raises(ConfigError, match="is no template here"):
        prompt_sensitivity(audit_of(), templates=("nothing",))


def test_refusals_cannot_occur_and_a_head_reads_no_question() -> None:
    result = prompt_sensitivity(audit_of(sight=1.0), resamples=20)
    for name in ("refusal_rate", "unparseable_rate"):
        item = found(result, name)
        assert item.value is None
        assert "neither refuse nor" in str(item.reason)
    headed = replace(audit_of(), model=linear_model(np.ones((SIDE, SIDE), dtype=np.float32)))
    assert headed.can("words") == "Linear reads no words: its classification head sees the image alone"


# A real vision-language model


def pictured(model: object, *, part: int = 64) -> Audit:
    rng = np.random.default_rng(0)
    classes = model.classes
    ids = [f"case-{place:02d}" for place in range(12)]
    table = pd.DataFrame(
        {
            "label": [classes[place % len(classes)] for place in range(12)], "patient": ids, "split": "all", "image": ids,
            "sex": ["F", "M"] * 6,
        },
        index=pd.Index(ids, name="id"),
    )  # fmt: skip
    data = AuditDataset(table, ("sex",), ArraySource(ids, rng.random((12, 3, WIDE, WIDE), dtype=np.float32)))
    decision = Decision(1, 0.5, True) if len(classes) == 2 else Decision()
    return Audit(model, data, decision, 3, Engine(part=part), ("sex",), task="prompt_sensitivity")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("vlm") / "llava", "llava")


def test_the_same_template_twice_gives_the_same_numbers_to_the_bit(vlm: Path) -> None:
    audit = pictured(load(vlm, {"clear": "clear lungs", "pneumonia": "pneumonia"}))
    result = prompt_sensitivity(audit, templates=("finding",), synonyms={"pneumonia": ("pneumonia",)}, resamples=20)
    rows = result.tables["prompt_sensitivity"].set_index("variant")["log_odds"]
    for name in ("template finding", "pneumonia: pneumonia"):
        assert rows.loc[name].tolist() == rows.loc["deployed"].tolist()
        assert rates(result)[name] == 0.0
    assert rows.loc["options reversed"].tolist() != rows.loc["deployed"].tolist()
    assert rows.loc["template caption"].tolist() != rows.loc["deployed"].tolist()
    likely = found(result, "label_word_probability", variant="deployed", image="as it is").value
    with torch.inference_mode():
        seen = audit.model.logits(torch.from_numpy(audit.pixels(range(12)))).exp().sum(1).mean()
    assert likely == pytest.approx(float(seen), rel=1e-4)


def test_a_yes_or_no_question_stays_one_and_five_classes_are_audited(vlm: Path) -> None:
    closed = prompt_sensitivity(
        pictured(load(vlm, {"clear": "no", "pneumonia": "yes"}, template="yes-no", normalise="pmi")), resamples=20
    )
    assert not any(name.startswith("template") for name in rates(closed))
    assert "options reversed" in rates(closed)
    # This tokenizer has no N: nothing is left of the word.
    assert any(
        "Not asked: labels: large letters" in caveat and "no token of 'NO'" in caveat for caveat in closed.caveats
    )
    assert "no probability" in str(found(closed, "label_word_probability", variant="deployed", image="as it is").reason)
    five = prompt_sensitivity(pictured(load(vlm)), resamples=20)
    assert {"options reversed", "options rotated by 1", "options rotated by 2"} <= rates(five).keys()
    assert found(five, "balanced_accuracy", variant="deployed", image="as it is").n == 12


def test_batches_and_order_change_nothing(vlm: Path) -> None:
    model = load(vlm, {"clear": "clear lungs", "pneumonia": "pneumonia"})
    whole, parts = (prompt_sensitivity(pictured(model, part=part), resamples=20) for part in (64, 5))
    for one, other in zip(whole.metrics, parts.metrics, strict=True):
        assert (one.name, one.where, one.value is None) == (other.name, other.where, other.value is None)
        if one.value is not None:
            assert one.value == pytest.approx(other.value, rel=1e-3, abs=1e-4)
    audit = pictured(model)
    turned = replace(audit, everything=replace(audit.everything, table=audit.everything.table[::-1]))
    first, second = (each.tables["prompt_sensitivity"] for each in (whole, prompt_sensitivity(turned, resamples=20)))
    keys = ["id", "variant", "image"]
    joined = first.merge(second, on=keys)
    assert len(joined) == len(first)
    assert (joined["log_odds_x"] - joined["log_odds_y"]).abs().max() < 1e-4


def test_what_is_found_is_whole_stored_and_drawn(vlm: Path, tmp_path: Path) -> None:
    result = prompt_sensitivity(pictured(load(vlm)), resamples=20)
    keys = [
        (item.name, tuple(sorted((key, str(value)) for key, value in item.where.items()))) for item in result.metrics
    ]
    assert len(keys) == len(set(keys))
    for item in result.metrics:
        assert item.reason if item.value is None else item.interval
        if item.value is not None:
            assert item.low is not None
            assert item.high is not None
            assert item.low <= item.value <= item.high
    writer = Writer(tmp_path)
    record = Record("prompt_sensitivity", "Prompt sensitivity", "Shift", "Do the words decide?", "ok", "key", {}, 1.0)
    stored = writer.result(record, result)
    (tmp_path / "run.json").write_text("{}")
    assert open_run(tmp_path).record("prompt_sensitivity") == stored
    figure = pytest.importorskip("dashboards.charts").figure
    svg = pytest.importorskip("reports.charts").svg
    assert figure(result.charts[0]).data
    assert all(b"<svg" in drawn for drawn in svg(result.charts[0]))


# A language model that reads a clinical text


def test_a_clinical_text_is_reworded_instead() -> None:
    model = adapted(reader())
    audit = pictured(model)
    rng = np.random.default_rng(1)
    texts = ["Fever and cough." if place % 2 else "" for place in range(12)]
    table = audit.everything.table.assign(text=texts)
    source = ArraySource(list(table.index), rng.random((12, 1, 16, 16), dtype=np.float32))
    audit = replace(audit, everything=replace(audit.everything, table=table, source=source))
    result = prompt_sensitivity(audit, templates=("open",), resamples=20)
    assert rates(result).keys() >= {"full stop", "lower case", "any other wording"}
    assert found(result, "flip_rate", variant="full stop", image="as it is").n == 6  # of those that have a text
    assert rates(result)["lower case"] == 0.0  # its vocabulary knows small letters only
    assert any("templates and synonyms were not used" in caveat for caveat in result.caveats)
    rows = result.tables["prompt_sensitivity"].set_index(["image", "variant", "id"])["log_odds"]
    plain = rows.loc["as it is"]
    assert plain.loc["lower case"].tolist() == plain.loc["deployed"].tolist()
    changed = plain.loc["full stop"] != plain.loc["deployed"]
    assert changed.tolist() == [bool(words) for words in texts]
    bare = replace(audit, everything=replace(audit.everything, table=table.assign(text="")))
    with pytest.raises(NotApplicable, match="reads no question but a clinical text, and no case comes with one"):
        prompt_sensitivity(bare)
