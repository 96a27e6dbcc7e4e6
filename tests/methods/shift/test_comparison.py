"""Several numbers compared at once, and the control of false alarms over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from xvision.methods.shift.comparison import bonferroni, compared, over_places
from xvision.methods.shift.two_sample import Sets, ks_test, standardised_difference, superiority


def test_each_number_is_compared_with_its_namesake() -> None:
    rng = np.random.default_rng(0)
    before = {"one": rng.normal(size=40), "two": rng.normal(size=40)}
    after = {"two": rng.normal(2, 1, 30), "one": rng.normal(size=30)}
    rows = compared(before, after, np.arange(40), np.arange(30))
    assert [row.name for row in rows] == ["one", "two"]
    sets = Sets(before["two"], after["two"], np.arange(40), np.arange(30))
    assert rows[1].difference == standardised_difference(sets)
    assert rows[1].auroc == superiority(sets)
    assert (rows[1].distance, rows[1].p_value) == ks_test(sets)


def test_families_equal_statsmodels_times_the_number_of_places() -> None:
    many, few = [0.001, 0.01, 0.02, 0.4], [0.004, 0.03]
    found = over_places({"images": (many, False), "outputs": ([*few, None], True), "none": ([None], False)})
    holm, plain = (multipletests(values, method=way)[1] for values, way in ((many, "holm"), (few, "bonferroni")))
    assert found["images"] == pytest.approx(np.minimum(2 * holm, 1))
    assert found["outputs"][:2] == pytest.approx(np.minimum(2 * plain, 1))
    assert found["outputs"][2] is None
    assert found["none"] == (None,)
    assert bonferroni([0.3, 0.5]).tolist() == [0.6, 1.0]


def test_false_alarms_over_32_outputs_stay_within_the_level() -> None:
    """Each Kolmogorov-Smirnov test, Bonferroni over the outputs (Rabanser et al. 2019): at most 5 %, and 2 standard errors."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(60):
        sets = [Sets(rng.normal(size=60), rng.normal(size=60), np.arange(60), np.arange(60)) for _ in range(32)]
        alarms += bonferroni([ks_test(each)[1] for each in sets]).min() <= 0.05
    assert alarms / 60 <= 0.1
