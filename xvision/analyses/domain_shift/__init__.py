"""Whether the model holds elsewhere and later, and whether these images are like those that it comes from."""

from __future__ import annotations

from xvision.analyses.domain_shift.against import against
from xvision.analyses.domain_shift.by_level import by_level
from xvision.analyses.domain_shift.part import Part
from xvision.analyses.domain_shift.without_labels import without_labels
from xvision.audit import Audit
from xvision.errors import ConfigError, ModelError, nearest
from xvision.registry import analysis
from xvision.result import Metric, NotApplicable, Result

_NO_REFERENCE = (
    "not applicable: there is nothing to compare with; name reference data in the plan ([shift] reference) or give a split"
    " validation or train"
)


@analysis(
    "Domain shift",
    pillar="Shift",
    need="scores",
    passes="none on the audited images beyond predictions and embeddings; the reference images the same, once",
)
def domain_shift(
    audit: Audit,
    *,
    columns: tuple[str, ...] = (),
    time: str = "",
    fewest: int = 20,
    permutations: int = 500,
    resamples: int = 500,
    most: int = 1000,
) -> Result:
    """Does the model hold at every site, scanner and time, and are these images like those that it comes from?

    Each level of the acquisition columns (or of ``columns``) and each period of ``time`` gets its figures; a level with fewer
    than ``fewest`` patients gets none. AUROC, sensitivity and specificity do not follow the prevalence; ``standardised_accuracy``
    is the accuracy that the level would have at the reference's prevalence. ``pooled_…`` is the mean of the levels (random effects,
    Hartung and Knapp), ``new_level_…`` where 95 of 100 further levels are expected, ``worst_…`` the lowest level with an interval
    that allows for its having been picked. Levels are taken as a random sample of such places, which few sites are not.

    Against the reference: ``standardised_difference`` (in standard deviations) and ``shift_auroc`` (0.5: cannot be told apart)
    say how large a shift is, ``shift_p`` whether chance would do. All p-values are controlled together: Holm within image
    statistics and embeddings, Bonferroni within outputs, then times the number of places looked at. MMD and the classifier use at
    most ``most`` images of each side. A shift says nothing of harm, and harm may come without one that is seen here.

    ``estimated_accuracy`` is what the reference's calibrated probabilities promise without a label, ``estimated_accuracy_error``
    how far off that is. Such estimates fail without a sign under prevalence shift and concept change (Flühmann et al. 2025).
    """
    chosen = _columns(audit, columns or audit.acquisition, time)
    reference, why = _reference(audit)
    if not chosen and not time and reference is None:
        raise NotApplicable(f"no acquisition or time column was declared, and {why.removeprefix('not applicable: ')}")
    parts = [
        by_level(audit, reference, name, fewest, over_time=name == time) for name in (*chosen, *[time] * bool(time))
    ]
    if reference is None:
        missing = [Metric(name, None, reason=why) for name in ("shift_p", "estimated_accuracy")]
        parts.append(Part(missing, caveats=[f"These images were compared with no others: {why}."]))
    else:
        parts.append(against(audit, reference, fewest, permutations, resamples, most))
        parts.append(without_labels(audit, reference, fewest, resamples))
    return Result(
        " ".join(sentence for part in parts for sentence in part.sentences),
        tuple(item for part in parts for item in part.metrics),
        tuple(chart for part in parts for chart in part.charts),
        tuple(case for part in parts for case in part.cases),
        {name: table for part in parts for name, table in part.tables.items()},
        tuple(caveat for part in parts for caveat in part.caveats),
    )


def _columns(audit: Audit, columns: tuple[str, ...], time: str) -> tuple[str, ...]:
    """The columns to look at besides ``time``; ConfigError for one that the data do not have."""
    known = audit.data.table.columns
    for name in (*columns, *[time] * bool(time)):
        if name not in known:
            raise ConfigError(
                f"analysis.domain_shift: the data have no column {name!r}; name it under data.acquisition, too. {nearest(name, known)}"
            )
    return tuple(name for name in dict.fromkeys(columns) if name != time)


def _reference(audit: Audit) -> tuple[Audit | None, str]:
    """The place the model comes from, or why these cases cannot be compared with it."""
    reference = audit.reference
    if reference is None or audit.model.access != "scores":
        return reference, _NO_REFERENCE
    try:
        _ = reference.predictions
    except ModelError as problem:
        return None, f"not applicable: {reference.called} has no predictions of its own ({str(problem).rstrip('.')})"
    return reference, ""
