"""The operating point of an audit: the threshold that was declared, or the one that the plan's rule chooses on validation cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from xvision import codec, text
from xvision.audit import Audit, Predictions
from xvision.config import DecisionPlan
from xvision.deployed import decision_at
from xvision.errors import ConfigError
from xvision.methods.decision import decide
from xvision.methods.operating_point import Judged, OperatingPoint, Rule, chosen_thresholds, tuned_rates
from xvision.tuning import tuning_cases, unseen_cases

_INSTEAD = "Or give a number as decision.threshold."
_NEEDED = {"sensitivity": (True,), "fpr": (False,), "net benefit": (True, False)}


def check_rule(audit: Audit, plan: DecisionPlan) -> None:
    """Raises ConfigError where the plan has a rule and nothing that it could choose a threshold on; runs no model."""
    if plan.rule is None:
        return
    tuning = tuning_cases(audit) if audit.model.access == "scores" else unseen_cases(audit)
    if isinstance(tuning, str):
        raise ConfigError(
            f'decision.rule: {tuning}. Name some cases "validation" in a column split, or divide the data by a table [data.split].'
            f" {_INSTEAD}"
        )
    if not tuning.labelled:
        raise ConfigError(
            f'decision.rule: the split "validation" has cases without a label. Label or remove them. {_INSTEAD}'
        )
    present = {bool(label == audit.positive) for label in tuning.labels}
    for wanted in _NEEDED[plan.rule.target]:
        if wanted not in present:
            name = audit.classes[audit.positive if wanted else 1 - audit.positive]
            raise ConfigError(
                f'decision.rule: the split "validation" has no case of {name}, so its {plan.rule.target} is not defined. {_INSTEAD}'
            )


def at_operating_point(audit: Audit, plan: DecisionPlan) -> Audit:
    """The audit with the decision that is judged, and with how it came about in ``operating``.

    A rule is asked of the model's answers to the split "validation", which the audit that is returned shares. Raises ConfigError
    where no threshold keeps the rule but one that calls nobody positive.
    """
    if plan.rule is None or audit.decision.positive is None:
        return replace(audit, operating=OperatingPoint(declared_statement(audit, plan)), shared={})
    check_rule(audit, plan)
    tuning = _validation(audit)
    rule = Rule(plan.rule.target, plan.rule.value)
    cases = Judged(tuning.scores, tuning.labels == audit.positive, tuning.patients)
    threshold = float(chosen_thresholds(rule, cases)[0])
    if math.isinf(threshold):
        raise ConfigError(
            f"decision.rule: of the {len(tuning.ids)} validation images only a threshold that calls none of them"
            f" {audit.classes[audit.positive]} keeps to {_wanted(rule)}. Agree on another value. {_INSTEAD}"
        )
    point = OperatingPoint(
        f"{_called(audit, plan, threshold)}, {_chosen(rule, cases, threshold, audit)}{_healthy(audit)}",
        rule, cases, replace(audit, task="operating point").seed_of("thresholds"),
    )  # fmt: skip
    decided = replace(audit, decision=decision_at(audit.model, plan, threshold), operating=point, shared={})
    again = _validation(decided)
    logits = tuning.predictions.logits
    again.predictions = Predictions(logits, tuning.predictions.probabilities, decide(logits, decided.decision))
    return decided


def _validation(audit: Audit) -> Audit:
    """The audit of the split "validation", which :func:`check_rule` has found."""
    if (tuning := audit.tuning) is None:
        raise ConfigError(f'decision.rule: there is no split "validation". {_INSTEAD}')
    return tuning


def declared_statement(audit: Audit, plan: DecisionPlan) -> str:
    """What the plan says of the decision before anything is chosen, in words and without a full stop."""
    if audit.decision.threshold is None:
        return "the most probable class"
    if plan.rule is not None:
        rule = Rule(plan.rule.target, plan.rule.value)
        return f"{plan.positive} from a threshold on that is to have {_wanted(rule)} and has not been chosen yet"
    said = _called(audit, plan, audit.decision.threshold)
    if plan.threshold is None:
        missing = "threshold" if plan.positive else "operating point"
        return f"{said}, by convention: the plan declares no {missing}{_healthy(audit)}"
    looked_for = "" if plan.positive else f"; that it looks for {audit.classes[audit.positive]} is a convention"
    return f"{said}, declared in the plan{looked_for}{_healthy(audit)}"


def described(audit: Audit, plan: DecisionPlan, statement: str) -> dict[str, object]:
    """What is judged, as run.json has it; a rule that has not been asked yet has no threshold."""
    decision, classes = audit.decision, audit.classes
    chosen = plan.rule is None or audit.operating.tuned
    said: dict[str, object] = {} if decision.directions == ("any",) else {"directions": list(decision.directions)}
    said |= {} if decision.off_by == 1 else {"off_by": decision.off_by}
    said |= {} if decision.no_disease is None else {"no_disease": classes[decision.no_disease]}
    said |= {} if plan.rule is None else {"rule": codec.plain(plan.rule)}
    return {
        "kind": "argmax" if decision.threshold is None else "threshold",
        "positive": "" if decision.positive is None else classes[decision.positive],
        "threshold": decision.threshold if chosen else None,
        "declared": decision.declared,
        **said,
        "statement": statement,
    }


def agreed(decision: Mapping[str, Any]) -> dict[str, Any]:
    """A decision of run.json as the plan has it: without its words, and without a threshold that follows from the rule."""
    follows = {"statement", "threshold"} if "rule" in decision else {"statement"}
    return {name: value for name, value in decision.items() if name not in follows}


def unchosen(decision: Mapping[str, Any]) -> bool:
    """Whether a decision of run.json still waits for its threshold, so that nothing was judged by it."""
    return "rule" in decision and decision["threshold"] is None


def _called(audit: Audit, plan: DecisionPlan, threshold: float) -> str:
    return f"{audit.classes[audit.positive]} when its probability is at least {_shown(threshold)}"


def _chosen(rule: Rule, cases: Judged, threshold: float, audit: Audit) -> str:
    reached = tuned_rates(cases, threshold, np.array([threshold]))
    extreme = {"sensitivity": "the largest threshold with", "fpr": "the smallest threshold with"}
    shown = "" if rule.target == "net benefit" else f" (reached: {reached[rule.target].value:.3f})"
    images = text.plural(len(cases.scores), "validation image")
    patients = set(cases.patients)
    whom = f" ({text.plural(len(patients), 'patient')})" if audit.data.patients_declared else ""
    shared = len(patients & set(audit.patients))
    twice = (
        f"; {text.plural(shared, 'patient')} of them also audited, which makes rates too favourable" if shared else ""
    )
    return (
        f"{extreme.get(rule.target, 'the threshold with')} {_wanted(rule)}{shown} on the {images}{whom};"
        f" it was tuned there, and intervals of rates by group include that{twice}"
    )


def _wanted(rule: Rule) -> str:
    value = _shown(rule.value)
    return {
        "sensitivity": f"a sensitivity of at least {value}",
        "fpr": f"a false positive rate of at most {value}",
        "net benefit": f"the largest net benefit at a threshold probability of {value}",
    }[rule.target]


def _healthy(audit: Audit) -> str:
    name = audit.classes[audit.positive]
    wrongly = f"; {name} is the class without disease, so a case that is wrongly called {name} is missed disease"
    return wrongly if audit.decision.healthy == audit.positive else ""


def _shown(share: float) -> str:
    """A probability with at least three decimals where they say something, and more near 0 and 1."""
    if share < 1e-6:
        return f"{share:.3g}"
    places = max(3, 2 - math.floor(math.log10(min(share, 1 - share))))
    return f"{share:.{places}f}".rstrip("0")
