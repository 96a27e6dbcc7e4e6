"""Images with a bar across the top, whose lesions cannot be seen, beside images whose lesions can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.analyses.scored import scored
from tests.analyses.subjects import SIDE
from xvision.analyses.slices import slices
from xvision.audit import Audit
from xvision.charts import Forest, Images, Table
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec
from xvision.result import Metric, Result

PATIENTS = 400


class _Seen(NetworkClassifier):
    """Log-odds linear in the means of 4 × 4 fields, which are its embeddings."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)


def model() -> _Seen:
    layer = nn.Linear(16, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 9] = 40.0
        layer.bias.fill_(-0.45 * 40.0)
    facts = Facts(("normal", "lesion"), False, InputSpec(1, SIDE, SIDE), "Fields", "a test", "fields")
    return _Seen(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), layer), facts, torch.device("cpu"))


def audit_of(*, hidden: bool = True, shown: bool = False, patients: int = PATIENTS, seed: int = 0) -> Audit:
    """Two images of each patient; a seventh of the patients have the bar. shown: a column says who."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), 2)
    bar, labels = (rng.random(patients) < 1 / 7)[who], rng.integers(0, 2, patients)[who]
    pixels = 0.3 + 0.1 * rng.random((len(who), SIDE, SIDE))
    pixels[bar, :3] += 0.4
    pixels[(labels == 1) & ~(bar & hidden), 8:12, 4:8] += 0.2
    ids = [f"p{place // 2:04d}-{place % 2}" for place in range(len(who))]
    table = pd.DataFrame(
        {
            "label": np.where(labels == 1, "lesion", "normal"),
            "patient": [f"p{number:04d}" for number in who],
            "split": "test",
            "sex": rng.choice(["F", "M"], patients)[who],
            "device": np.where(bar, "yes", "no") if shown else rng.choice(["yes", "no"], patients)[who],
            "image": ids,
        },
        index=pd.Index(ids, name="id"),
    ).astype("str")
    source = ArraySource(ids, pixels[:, None].clip(0, 1).astype(np.float32))
    data = AuditDataset(table, ("sex", "device"), source)
    return Audit(model(), data, Decision(1, 0.5, True), seed, Engine(), ("sex",), ("device",), task="slices")


@pytest.fixture(scope="module")
def found() -> Result:
    return slices(audit_of(), permutations=19)


def metrics(result: Result, name: str) -> list[Metric]:
    return [item for item in result.metrics if item.name == name]


def test_the_hidden_slice_is_confirmed_and_only_images_say_what_it_is(found: Result) -> None:
    (confirmed,) = metrics(found, "slices_confirmed")
    assert confirmed.value == 1
    (error,), (gap,) = metrics(found, "slice_error"), metrics(found, "slice_error_difference")
    assert dict(error.where) == {"slice": "A"}
    assert error.value == pytest.approx(0.5, abs=0.15)
    assert gap.low is not None
    assert gap.low > 0.2
    assert metrics(found, "null_p")[0].value == 0.05
    assert "No recorded column describes slice A: look at its images." in found.summary
    table = found.tables["slices"]
    barred = audit_of()
    bright = barred.pixels(range(len(barred.ids)))[:, 0, :3].mean(axis=(1, 2)) > 0.6
    members = np.isin(barred.ids, table["id"])
    assert bright[members].mean() > 0.95
    assert (table["half"] == "confirm").sum() == metrics(found, "slice_cases")[0].value
    assert (table["half"] == "discover").any()


def test_examples_stand_beside_typical_cases_of_the_rest(found: Result) -> None:
    (shown,) = [chart for chart in found.charts if isinstance(chart, Images)]
    cases = {case.id: case for case in found.cases}
    assert len(shown.cases) == 6
    own, beside = shown.pictures
    for name in shown.cases:
        assert cases[name].pictures[own][:30].mean() > cases[name].pictures[beside][:30].mean() + 50
    wrong = [case.facts["label"] != case.facts["decision"] for case in cases.values()]
    assert wrong == [True] * 4 + [False] * 2


def test_sizes_come_first_and_shrinkage_is_shown(found: Result) -> None:
    sizes, forest, candidates, described = found.charts[:4]
    assert isinstance(sizes, Table)
    assert [row[2] for row in sizes.rows] == [200, 200]
    assert isinstance(forest, Forest)
    assert isinstance(candidates, Table)
    assert len(forest.marks) == len(candidates.rows) <= 20
    assert [row[-1] for row in candidates.rows].count("confirmed") == 1
    assert isinstance(described, Table)
    assert described.rows[0][:2] == ("A", "no recorded column describes it")


def test_the_clean_twin_gives_none_and_says_what_would_have_been_found() -> None:
    noisy = audit_of(hidden=False, seed=1)
    flipped = np.random.default_rng(0).random(len(noisy.ids)) < 0.1
    table = noisy.everything.table
    labels = np.where(flipped, np.where(table["label"] == "lesion", "normal", "lesion"), table["label"])
    result = slices(
        replace(noisy, everything=replace(noisy.everything, table=table.assign(label=labels))), permutations=19
    )
    assert [item.value for item in metrics(result, "slices_confirmed")] == [0.0]
    assert "is confirmed in four of five data sets only where it errs in about" in result.summary
    assert result.cases == ()


def test_a_column_that_describes_the_slice_is_preferred() -> None:
    result = slices(audit_of(shown=True), permutations=19)
    assert [dict(item.where) for item in metrics(result, "slice_error")] == [{"slice": "device yes"}]
    assert "The columns of the table describe it: device yes." in result.summary


def test_the_order_of_rows_and_the_size_of_parts_change_nothing(found: Result) -> None:
    audit = audit_of()
    order = np.random.default_rng(0).permutation(len(audit.ids))
    table = audit.everything.table.iloc[order]
    turned = replace(audit, everything=replace(audit.everything, table=table), engine=Engine(part=50))
    again = slices(turned, permutations=19)
    assert [(item.name, dict(item.where), item.value) for item in again.metrics] == [
        (item.name, dict(item.where), item.value) for item in found.metrics
    ]


def test_pictures_stay_at_home_where_the_plan_says_so() -> None:
    result = slices(replace(audit_of(), pictures=False, groups=(), acquisition=()), permutations=19)
    assert result.cases == ()
    assert not any(isinstance(chart, Images) for chart in result.charts)
    assert any("No group or acquisition column" in item for item in result.caveats)


def test_too_few_patients_and_scores_alone_have_a_reason() -> None:
    few = slices(audit_of(patients=20), permutations=19)
    assert few.summary == "No search: 20 patients are too few to search: at least 30 are needed."
    (confirmed,) = few.metrics
    assert confirmed.value is None
    given = scored(np.linspace(0.1, 0.9, 40), np.arange(40) % 2)
    assert given.can("embeddings") == "only predictions were given, no model"


def test_large_weights_are_warned_of_and_senseless_options_refused() -> None:
    result = slices(audit_of(hidden=True, patients=100), weight=10.0, permutations=19)
    assert any("have a weight of 10.000" in item for item in result.caveats)
    for options in ({"groups": 1}, {"minimum": 0}, {"weight": -1.0}, {"permutations": 10}):
        with pytest.raises(ConfigError, match=r"analysis\.slices: found groups"):
            slices(audit_of(patients=20), **options)
