"""All checks on one set of evidence, and the verdict that follows from them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from tests.attacks.gathered import ALL, NONE, N, evidence, first, of
from xvision.attacks.check_table import RULES, State, not_run
from xvision.attacks.checks import CAVEAT, Evidence, examine, verdict
from xvision.errors import ConfigError


def test_an_honest_model_is_clear_everywhere_and_supported() -> None:
    checks = examine(evidence())
    assert [check.id for check in checks] == [f"M{number}" for number in range(1, 23)] == list(RULES)
    assert {check.state for check in checks} == {"clear"}
    said = verdict(checks)
    assert (said.state, said.flags, said.missing) == ("supported", (), ())
    assert CAVEAT in said.sentence
    assert "neither necessary nor sufficient (Carlini et al. 2019)" in CAVEAT
    for check in checks:
        assert check.sentence.endswith(".")
        assert check.sentence[0].isupper() or check.sentence[0].isdigit()
        assert (check.name, check.statement, check.rule) == RULES[check.id][:3]


@pytest.mark.parametrize(
    ("changes", "id_", "state"),
    [
        ({"single_step": ALL}, "M1", "flagged"),
        ({"black_box": ALL}, "M2", "flagged"),
        ({"transfer": ALL}, "M3", "flagged"),
        ({"unbounded": NONE}, "M4", "broken"),
        ({"half": NONE, "grey": ALL}, "M4", "broken"),
        ({"curve": np.stack([first(30), first(10)], axis=1)}, "M5", "flagged"),
        ({"zero_slope": ALL, "tiny_slope": ALL, "cross_entropy_zero": ALL}, "M6", "broken"),
        ({"tiny_slope": first(1)}, "M6", "flagged"),
        ({"cross_entropy": NONE}, "M7", "flagged"),
        ({"cross_entropy_zero": ALL}, "M7", "flagged"),
        ({"nonfinite": first(1)}, "M8", "flagged"),
        ({"cut": ALL}, "M8", "broken"),
        ({"unexplained": np.full(N, 0.5)}, "M9", "flagged"),
        ({"paths": np.linspace(0, 1, 50)[None, :].repeat(N, axis=0)}, "M10", "flagged"),
        ({"longer": ALL}, "M11", "flagged"),
        ({"restarted": ALL}, "M12", "flagged"),
        ({"silent": first(1)}, "M13", "broken"),
        ({"held": NONE}, "M14", "broken"),
        ({"spread": np.full(N, 0.1)}, "M15", "flagged"),
        ({"changed": first(1)}, "M15", "flagged"),
        ({"logits": np.full((N, 2), 0.5)}, "M16", "flagged"),
        ({"dynamic": ALL}, "M17", "flagged"),
        ({"at_random": np.full(N, 2.0)}, "M18", "flagged"),
        ({"noise": ALL}, "M19", "flagged"),
        ({"company": np.full(N, 0.1)}, "M20", "flagged"),
        ({"cosine": np.zeros(N)}, "M21", "flagged"),
        ({"reached": first(0, 30)}, "M22", "broken"),
    ],
)
def test_one_thing_wrong_is_one_flag_and_its_verdict(changes: dict[str, object], id_: str, state: State) -> None:
    checks = examine(evidence(**changes))
    assert [(check.id, check.state) for check in checks if check.state not in ("clear", "not run")] == [(id_, state)]
    said = verdict(checks)
    assert said.state == {"flagged": "inconclusive", "broken": "broken"}[state]
    assert said.flags == (f"{id_} {RULES[id_].name}",)
    assert id_ in said.sentence
    assert CAVEAT in said.sentence


def test_what_proves_failure_is_what_the_table_says() -> None:
    proofs = {"M4", "M6", "M8", "M13", "M14", "M22"}
    assert {id_ for id_, rule in RULES.items() if "roken" in rule.rule} == proofs


def test_a_random_model_is_not_blamed_for_its_neighbours() -> None:
    changes = {"spread": np.ones(N), "company": np.ones(N), "cosine": np.zeros(N)}
    checks = examine(evidence(**changes))
    assert [check.id for check in checks if check.state == "flagged"] == ["M15"]
    assert [check.id for check in checks if check.state == "not run"] == ["M20", "M21"]
    assert verdict(checks).state == "inconclusive"


@pytest.mark.parametrize("name", [field.name for field in fields(Evidence) if field.name != "refused"])
def test_what_was_not_gathered_is_not_run_and_nothing_mandatory_may_be_missing(name: str) -> None:
    checks = examine(evidence(**{name: None}))
    missing = [check for check in checks if check.state == "not run"]
    assert all(name.replace("_", " ") in check.sentence and check.of == 0 for check in missing)
    assert bool(missing) != (name in {"half", "grey", "met_nonfinite"})
    mandatory = tuple(f"{check.id} {check.name}" for check in missing if RULES[check.id].mandatory)
    said = verdict(checks)
    assert said.missing == mandatory
    assert said.state == ("inconclusive" if mandatory else "supported")
    assert all(id_.split()[0] in said.sentence for id_ in mandatory)


def test_nothing_gathered_supports_nothing() -> None:
    checks = examine(Evidence())
    assert {check.state for check in checks} == {"not run"}
    assert verdict(checks) == verdict(())
    assert verdict(()).state == "inconclusive"
    assert set(verdict(()).missing) == {f"{id_} {rule.name}" for id_, rule in RULES.items() if rule.mandatory}


def test_too_few_cases_for_any_sign_are_not_called_clear() -> None:
    few = {
        field.name: getattr(evidence(), field.name)[:6]
        for field in fields(Evidence)
        if isinstance(getattr(evidence(), field.name), np.ndarray)
    }
    checks = examine(Evidence(**few, ways=1))
    not_ran = {check.id for check in checks if check.state == "not run"}
    assert not_ran == {id_ for id_, rule in RULES.items() if rule.fewest > 6}
    assert verdict(checks).state == "inconclusive"


def test_a_reason_is_given_for_what_is_refused() -> None:
    check = of("M2", evidence(refused={"M2": "the plan leaves it out"}))
    assert check.sentence == "Not run: the plan leaves it out."
    assert check == not_run("M2", "the plan leaves it out")
    with pytest.raises(ConfigError, match="M99"):
        Evidence(refused={"M99": ""})
