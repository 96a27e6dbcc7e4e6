"""The decision that a plan declares for a model."""

from __future__ import annotations

from xvision.config import DecisionPlan
from xvision.errors import ConfigError, nearest
from xvision.methods.decision import Decision
from xvision.models.protocols import Classifier


def deployed_decision(model: Classifier, plan: DecisionPlan) -> Decision:
    """The decision that a plan declares; undeclared parts take the usual convention and are marked so.

    Raises ConfigError for a class or a threshold that does not fit the model, and for a threshold that a rule has yet to choose.
    """
    if plan.rule is not None and len(model.classes) == 2:
        raise ConfigError(
            "decision.rule has its threshold chosen by an audit. Give the one that the audit chose (decision in its run.json) as"
            " decision.threshold instead."
        )
    return decision_at(model, plan, plan.threshold)


def decision_at(model: Classifier, plan: DecisionPlan, threshold: float | None) -> Decision:
    """The decision that a plan declares, with this threshold, or 0.5 for None; whoever calls knows where it comes from.

    Raises ConfigError for a class, a threshold or a rule that does not fit the model.
    """
    if plan.positive is not None and plan.positive not in model.classes:
        raise ConfigError(
            f"decision.positive is {plan.positive!r}, not a class of the model. {nearest(plan.positive, model.classes)}"
        )
    healthy = _no_disease(model, plan)
    if len(model.classes) > 2:
        for name in ("threshold", "rule"):
            if getattr(plan, name) is not None:
                raise ConfigError(
                    f"decision.{name} is for two classes; this model has {len(model.classes)}. Remove it."
                )
        return Decision(None, None, True, plan.directions, plan.off_by, healthy)
    positive = 1 if plan.positive is None else model.classes.index(plan.positive)
    declared = plan.positive is not None and (plan.threshold is not None or plan.rule is not None)
    return Decision(positive, 0.5 if threshold is None else threshold, declared, plan.directions, plan.off_by, healthy)


def _no_disease(model: Classifier, plan: DecisionPlan) -> int | None:
    if plan.no_disease is None:
        if "any" not in plan.directions and len(model.classes) > 2:
            raise ConfigError(
                f"decision.directions {list(plan.directions)} need the class without disease among {len(model.classes)}:"
                f" give decision.no_disease, one of {', '.join(model.classes)}."
            )
        return None
    if plan.no_disease not in model.classes:
        raise ConfigError(
            f"decision.no_disease is {plan.no_disease!r}, not a class of the model."
            f" {nearest(plan.no_disease, model.classes)}"
        )
    return model.classes.index(plan.no_disease)
