"""One rounding policy, in words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision import text


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.91249, "", "0.912"),
        (-0.0001, "", "0.000"),
        (-0.25, "", "−0.250"),
        (1234567, "count", "1 234 567"),
        (23.456, "dB", "23.456 dB"),
        (345.67, "dB", "345.7 dB"),
        (4 / 255, "epsilon", "4/255"),
        (0.5 / 255, "epsilon", "0.5/255"),
        (None, "", "–"),
    ],
)
def test_numbers(value: float | None, unit: str, shown: str) -> None:
    assert text.number(value, unit) == shown


def test_values_have_their_interval_or_their_reason() -> None:
    assert text.value(0.9124, 0.871, 0.9409) == "0.912 (0.871 to 0.941)"
    assert text.value(20.0, 18.0, 22.0, "dB") == "20.000 (18.000 to 22.000 dB)"
    assert text.value(None, None, None, reason="no positive cases") == "not estimable (no positive cases)"
    assert text.value(3, None, None, "count") == "3"
    assert text.value(4 / 255, 2 / 255, 1.0, "epsilon") == "4/255 (2/255 to 255/255)"


def test_conditions_and_labels() -> None:
    assert text.condition({"sex": "F", "epsilon": 2 / 255, "severity": 3}) == "sex F, epsilon 2/255, severity 3"
    assert text.condition({"norm": "linf", "epsilon": 2 / 255}) == "norm L∞, epsilon 2/255"
    assert text.condition({"norm": "l0", "epsilon": 0.002}) == "norm L0, epsilon 0.2 %"
    assert text.condition({}) == ""
    assert text.label("auroc_within") == "AUROC within"
    assert text.label("sensitivity_difference") == "Sensitivity difference"


def test_lists_and_plurals() -> None:
    assert text.listing(["a"]) == "a"
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.listing(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert text.listing([]) == ""
    assert [text.plural(count, "patient") for count in (1, 2, 1000)] == ["1 patient", "2 patients", "1 000 patients"]


@settings(deadline=None, max_examples=100)
@given(st.floats(-99, 99))
def test_what_is_shown_is_within_half_of_the_last_digit(value: float) -> None:
    assert float(text.number(value).replace("−", "-")) == pytest.approx(value, abs=0.000501)
