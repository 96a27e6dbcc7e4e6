"""The cases that something may be fitted on: never audited ones."""

from __future__ import annotations

from xvision.audit import Audit
from xvision.errors import ModelError


def tuning_cases(audit: Audit) -> Audit | str:
    """The split "validation", with predictions; or why nothing may be fitted on it."""
    tuning = unseen_cases(audit)
    if isinstance(tuning, str):
        return tuning
    try:
        _ = tuning.predictions
    except ModelError as problem:
        if audit.model.access != "scores":
            raise
        return f'the cases of the split "validation" have to be added to the predictions ({problem})'
    return tuning


def unseen_cases(audit: Audit) -> Audit | str:
    """The split "validation", of which the model may not have been asked yet; or why nothing may be fitted on it."""
    tuning = audit.tuning
    if tuning is None:
        return 'the data has no split "validation" to fit on, and audited images must not be fitted on'
    if set(tuning.ids) & set(audit.ids):
        return 'the split "validation" is among the audited images, which must not be fitted on'
    return tuning
