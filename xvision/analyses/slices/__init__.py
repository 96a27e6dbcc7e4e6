"""Whether some patients are hidden from the average for whom the model fails."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xvision import text
from xvision.analyses.slices.page import charts, pictured
from xvision.analyses.slices.part import Found, table
from xvision.audit import Audit, count, metric
from xvision.errors import ConfigError
from xvision.methods.slices.cases import checked
from xvision.methods.slices.search import detectable, find_slices
from xvision.registry import analysis
from xvision.result import Metric, Result, named, spoken

_LARGE_WEIGHT = 5.0
_SMALL_SHARE = 0.1


@analysis("Hidden slices", pillar="Fairness", need="embeddings", passes="1 embedding of each image")
def slices(audit: Audit, *, groups: int = 25, minimum: int = 10, weight: float = 3.0, permutations: int = 39) -> Result:
    """Are there patients hidden from the average for whom it fails?

    Half of the patients serve to find slices: levels of the declared columns and pairs of them, then groups of alike embeddings
    (a mixture, k-means, and the direction in which errors exceed what label and score lead to expect). The other half checks
    them. There, cases belong to a slice by their columns or their embedding alone, never by label, score or error.
    ``slice_error_difference`` is how much more the slice errs than the rest does within each label, on those patients; intervals
    hold together over all candidates. Confirmed means: more errors among cases of the same label and among cases with the same
    score (permutation by patient, Holm over the candidates), as much in at most 5 % of searches of the same data with the answers
    dealt out anew within the label (``null_p``), and found again in at least 60 % of searches of other patients and starts.
    Slices "told by the score" err more, but no more than the model's own probability says: it is unsure there, and a human can
    be asked. No confirmed slice does not say that there is none: only what the embedding shows can be found, and only slices of
    ``minimum`` patients in each half. What a slice has in common must be seen by a person; over-represented columns are no cause.
    ``weight``: of label and score beside the embedding when groups are formed; large ones find slices that fall apart.
    """
    if groups < 2 or minimum < 1 or permutations < 19 or not 0 <= weight < np.inf:
        raise ConfigError(
            f"analysis.slices: found groups = {groups}, minimum = {minimum}, weight = {weight}, permutations = {permutations};"
            " give at least 2 groups, 1 patient, a weight of 0 or more and 19 permutations."
        )
    found = _found(audit, groups, minimum, weight, permutations)
    metrics = tuple(_metrics(found, permutations))
    cases, images = pictured(audit, found)
    return Result(
        _summary(found, metrics),
        metrics,
        (*charts(found), *images),
        cases,
        {"slices": table(audit, found)},
        tuple(_caveats(found, minimum, weight)),
    )


def _found(audit: Audit, groups: int, minimum: int, weight: float, permutations: int) -> Found:
    """The search over the cases in the order of their ids, so that no order of rows matters."""
    order, predictions = np.argsort(audit.ids), audit.predictions
    cases = checked(
        audit.embeddings[order],
        audit.labels[order],
        predictions.probabilities[order],
        predictions.decisions[order],
        audit.patients[order],
    )
    columns = {name: audit.column(name)[order] for name in (*audit.groups, *audit.acquisition)}
    search = find_slices(
        cases, columns, rng=audit.rng("search"), most=groups, minimum=minimum, weight=weight, permutations=permutations
    )
    return Found(audit, order, cases, columns, search)


def _metrics(found: Found, permutations: int) -> Iterator[Metric]:
    search = found.search
    if search.reason:
        yield Metric("slices_confirmed", None, unit="count", reason=search.reason)
        return
    yield count("slices_confirmed", len(search.confirmed))
    yield count("slices_told_by_score", sum(item.verdict == "told by the score" for item in search.slices))
    yield count("candidates_checked", len(search.slices))
    together = f", {100 * search.level:.4g} % each so that {len(search.slices)} hold together"
    for name, item in zip(found.names, search.confirmed, strict=False):
        where, patients = {"slice": name}, item.checked.patients
        yield metric("slice_error", item.checked.error, better="lower", where=where)
        gap = item.checked.difference
        yield metric("slice_error_difference", gap._replace(method=gap.method + together), better="lower", where=where)
        yield Metric(
            "slice_p", item.adjusted, n=patients, where=where, interval="permutation within label and score, Holm"
        )
        if item.null_p is not None:
            how = f"{permutations} searches with the answers dealt out anew within the label"
            yield Metric("null_p", item.null_p, n=patients, where=where, interval=how)
        yield count("slice_cases", item.checked.cases, where=where)
        yield count("slice_patients", patients, where=where)


def _summary(found: Found, metrics: tuple[Metric, ...]) -> str:
    search = found.search
    if search.reason:
        return f"No search: {search.reason}."
    if not search.confirmed:
        said = f"No slice was confirmed among {text.plural(len(search.slices), 'candidate')}."
        return f"{said} {_power(found)}".strip()
    gaps = [item for item in metrics if item.name == "slice_error_difference"]
    listed = "; ".join(f"{named(item)} {spoken(item)}" for item in gaps[:3])
    said = f"{text.plural(len(gaps), 'slice')} of patients for whom it fails more than for the rest: {listed}."
    return f"{said} {found.named(0)}"


def _power(found: Found) -> str:
    """What would have been found, so that nothing is not read as none."""
    search, cases = found.search, found.cases
    other = ~search.discover
    patients, rate = len(np.unique(cases.patients[other])), float(cases.errors[other].mean())
    least = detectable(patients, rate, len(search.slices), share=_SMALL_SHARE)
    slice_of = f"a slice of {100 * _SMALL_SHARE:.0f} % of the patients"
    if least is None:
        return f"With these numbers of patients not even {slice_of} in which every case is wrong would be confirmed reliably."
    errs = (
        f"it errs in about {100 * least:.0f} % of its cases or more" if least < 0.95 else "nearly every case is wrong"
    )
    return (
        f"With {text.plural(patients, 'patient')} to check on, {slice_of} is confirmed in four of five data sets only where"
        f" {errs} (all: {100 * rate:.0f} %), if it is found at all."
    )


def _caveats(found: Found, minimum: int, weight: float) -> Iterator[str]:
    search = found.search
    if search.reason:
        return
    yield "Half of the patients found the slices and half checked them: numbers of the finding half are too large and only shown beside."
    yield f"Slices of fewer than {text.plural(minimum, 'patient')} in either half were not looked at."
    if weight > _LARGE_WEIGHT:
        yield (
            f"Label and score have a weight of {text.number(weight)} in forming groups: large weights find groups that fall"
            " apart on other patients."
        )
    if not found.columns:
        yield "No group or acquisition column was declared, so that no column could describe a slice."
    if not search.groups:
        yield "All embeddings are alike: only columns were searched."
    told = sum(item.verdict == "told by the score" for item in search.slices)
    if told:
        verb = "errs" if told == 1 else "err"
        yield (
            f"{text.plural(told, 'further slice')} {verb} more than the rest and the model's own score says so: a threshold for"
            " asking a human would reach these cases."
        )
