"""The decision that a plan declares for a model."""

from __future__ import annotations

from xvision.config import DecisionPlan
from xvision.errors import ConfigError, nearest
from xvision.methods.decision import Decision
from xvision.models.protocols import Classifier


def deployed_decision(model: Classifier, plan: DecisionPlan) -> Decision:
    """The decision that a plan declares; undeclared parts take the usual convention and are marked so.

    Raises ConfigError for a class or a threshold that does not fit the model.
    """
    if plan.positive is not None and plan.positive not in model.classes:
        raise ConfigError(
            f"decision.positive is {plan.positive!r}, not a class of the model. {nearest(plan.positive, model.classes)}"
        )
    if len(model.classes) > 2:
        if plan.threshold is not None:
            raise ConfigError(f"decision.threshold is for two classes; this model has {len(model.classes)}. Remove it.")
        return Decision(None, None, True, plan.directions, plan.off_by, _no_disease(model, plan))
    positive = 1 if plan.positive is None else model.classes.index(plan.positive)
    declared = plan.positive is not None and plan.threshold is not None
    return Decision(positive, 0.5 if plan.threshold is None else plan.threshold, declared, plan.directions, plan.off_by)


def _no_disease(model: Classifier, plan: DecisionPlan) -> int | None:
    if plan.no_disease is None:
        if "any" not in plan.directions:
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
