"""Whether audited images, or their patients, were there before: in another split, or twice in this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xvision import images, text
from xvision.analyses.data_quality.gathered import COPIES, Gathered, copies
from xvision.analyses.data_quality.part import ACROSS, OTHER, SAME, Part
from xvision.audit import Audit, count, metric
from xvision.charts import Axis, Chart, Images, Lines, Reference, Series, Table
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.methods.near_duplicates import Neighbours, Threshold, nearest_embeddings, nearest_hashes, threshold
from xvision.result import Case, Metric

_PICTURED = 12
_LISTED = 30
_COPIED = 200
_NOT_SEEN = -1
_FINEST = {"hash": 1.0, "embedding": 1e-6}
_WORDS = {
    "patient": "same patient",
    "content": "same bytes",
    "hash": "nearly the same image",
    "embedding": "nearly the same embedding",
}
_NO_PATIENTS = "the data names no patients"
_ONE_SPLIT = "not applicable: all cases are audited and belong to one split"


class _Pair(NamedTuple):
    """Two images of ``seen``: the first is audited. kind: how they belong together; by: what found them."""

    seen: Gathered
    first: int
    second: int
    distance: float
    kind: str
    by: str


@dataclass(frozen=True)
class _Near:
    """What one way of comparing images found."""

    by: str
    seen: Gathered | None
    limit: Threshold
    pairs: tuple[_Pair, ...] = ()


def copied(audit: Audit, hashes: Gathered | None, embeddings: Gathered | None) -> Part:
    """The section. hashes, embeddings: of all splits, where the model gives them."""
    several = len(set(audit.everything.table["split"])) > 1
    no_images = audit.can("pixels")
    near = [_near("hash", hashes, no_images), _near("embedding", embeddings, audit.can("embeddings"))]
    flags = {"patient": _leaked_by_patient(audit), **_by_content(audit, no_images)}
    flags |= {each.by: _leaked_by(audit, each) for each in near}
    metrics = [*_leaks(audit, flags, several), *_repeats(audit, near, no_images), *_controls(audit, near[0], no_images)]
    pairs = sorted((pair for each in near for pair in each.pairs), key=lambda pair: (_rank(pair.kind), pair.distance))
    pictured = _pictured(audit, pairs) if audit.pictures else ()
    charts = tuple(_charts(audit, flags, near, pairs, pictured, several))
    return Part(tuple(metrics), charts, pictured, tuple(_caveats(near)), tuple(_sentences(flags, pairs, several)))


def _rank(kind: str) -> int:
    return (ACROSS, OTHER, SAME).index(kind)


def _near(by: str, seen: Gathered | None, why: str | None) -> _Near:
    if seen is None:
        return _Near(by, None, Threshold(None, np.zeros(0), why))
    if by == "hash":
        seen = seen.kept(~np.isin(seen.faults, ("constant", "almost uniform")))
    own = np.flatnonzero(seen.audited)
    found = _nearest(by, seen, own)
    limit = threshold(found, seen.patients[own], seen.patients, finest=_FINEST[by])
    return _Near(by, seen, limit, tuple(_pairs(by, seen, own, found, limit)))


def _nearest(by: str, seen: Gathered, own: np.ndarray) -> Neighbours:
    if by == "hash":
        hashes = seen.rows["hashes"]
        return nearest_hashes(hashes[own], np.ascontiguousarray(hashes[:, 0]), own)
    values = seen.rows["embeddings"]
    return nearest_embeddings(values[own], values, own)


def _pairs(by: str, seen: Gathered, own: np.ndarray, found: Neighbours, limit: Threshold) -> Iterator[_Pair]:
    """Each pair once; images of one patient that agree in split and label are no finding."""
    if limit.value is None:
        return
    told: set[tuple[int, int]] = set()
    for row, column in np.argwhere((found.distances <= limit.value) & (found.places >= 0)):
        first, second = int(own[row]), int(found.places[row, column])
        across = seen.splits[first] != seen.splits[second]
        other = seen.labels[first] != seen.labels[second]
        twice = (second, first) in told
        same = seen.patients[first] == seen.patients[second] and not across and not other
        if not twice and not same:
            told.add((first, second))
            kind = ACROSS if across else OTHER if other else SAME
            yield _Pair(seen, first, second, float(found.distances[row, column]), kind, by)


def _leaked_by_patient(audit: Audit) -> np.ndarray | str:
    if not audit.everything.patients_declared:
        return _NO_PATIENTS
    table = audit.everything.table
    shared = table.groupby("patient")["split"].nunique()
    return np.asarray(shared.loc[audit.data.table["patient"]] > 1, int)


def _by_content(audit: Audit, no_images: str | None) -> dict[str, np.ndarray | str]:
    """Whether the bytes of each audited image are in another split."""
    if no_images:
        return {"content": no_images}
    digests = np.asarray(audit.everything.source.digests(audit.everything.ids, "image"))
    table = audit.everything.table.assign(digest=digests)
    shared = table[table["digest"] != ""].groupby("digest")["split"].nunique()
    return {"content": np.asarray(table.loc[audit.data.table.index, "digest"].map(shared).fillna(0) > 1, int)}


def _leaked_by(audit: Audit, near: _Near) -> np.ndarray | str:
    if near.limit.value is None or near.seen is None:
        return near.limit.reason or ""
    found = np.full(len(audit.ids), _NOT_SEEN)
    found[near.seen.position[near.seen.audited]] = 0
    for pair in near.pairs:
        if pair.kind == ACROSS:
            ends = (pair.first, pair.second)
            found[[pair.seen.position[end] for end in ends if pair.seen.audited[end]]] = 1
    return found


def _leaks(audit: Audit, flags: Mapping[str, np.ndarray | str], several: bool) -> Iterator[Metric]:
    """Share and number of audited images with a trace of them in another split."""
    known = [found == 1 for found in flags.values() if not isinstance(found, str)]
    anything = np.any(known, axis=0).astype(int) if known else "nothing could be compared"
    everything: dict[str, np.ndarray | str] = {"any": anything}
    for by, found in (everything | dict(flags)).items():
        where = {"by": by}
        missing = _ONE_SPLIT if not several else found if isinstance(found, str) else ""
        if missing or isinstance(found, str):
            yield metric("leaked_share", not_estimable(missing), better="lower", where=where)
            yield Metric("leaked_images", None, unit="count", where=where, reason=missing)
            continue
        seen = found != _NOT_SEEN
        yield metric("leaked_share", proportion(found[seen] == 1, audit.patients[seen]), better="lower", where=where)
        yield count("leaked_images", int((found == 1).sum()), where=where)


def _repeats(audit: Audit, near: list[_Near], no_images: str | None) -> Iterator[Metric]:
    """Audited images that are there twice."""
    found: dict[str, dict[str, int] | str] = {"content": no_images or _same_bytes(audit)}
    for each in near:
        ends = {
            kind: {pair.seen.ids[end] for pair in each.pairs if pair.kind == kind for end in (pair.first, pair.second)}
            for kind in (SAME, OTHER)
        }
        found[each.by] = each.limit.reason or {kind: len(names) for kind, names in ends.items()}
    for by, counts in found.items():
        for kind in (SAME, OTHER):
            where = {"by": by, "among": kind}
            if isinstance(counts, str):
                yield Metric("repeated_images", None, unit="count", where=where, reason=counts)
            else:
                yield count("repeated_images", counts[kind], where=where)


def _same_bytes(audit: Audit) -> dict[str, int]:
    digests = np.asarray(audit.data.source.digests(audit.data.ids, "image"))
    table = audit.data.table.assign(digest=digests)
    groups = table[table["digest"] != ""].groupby("digest")["label"]
    sizes, labels = groups.transform("size"), groups.transform("nunique")
    return {SAME: int(((sizes > 1) & (labels == 1)).sum()), OTHER: int((labels > 1).sum())}


def _controls(audit: Audit, near: _Near, no_images: str | None) -> Iterator[Metric]:
    """Share of copies made on purpose that the hash finds at its threshold."""
    reason = no_images or near.limit.reason
    positions = audit.sample(_COPIED)
    made = None if reason else audit.map(copies, positions=positions)
    for name in COPIES:
        estimate: Estimate = not_estimable(reason or "")
        if made is not None and near.limit.value is not None:
            estimate = proportion(made[name] <= near.limit.value, audit.patients[positions])
        yield metric("copies_found", estimate, better="higher", where={"copy": name})


def _pictured(audit: Audit, pairs: list[_Pair]) -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    for pair in pairs:
        name = str(pair.seen.ids[pair.first])
        if name in cases or len(cases) == _PICTURED:
            continue
        shown = {"image": pair.seen.pixels(pair.first), "its likeness": pair.seen.pixels(pair.second)}
        pictures = {title: images.enlarged(images.photograph(pixels)) for title, pixels in shown.items()}
        cases[name] = Case(name, dict(zip(_COLUMNS, _row(pair), strict=True)), pictures)
    return tuple(cases.values())


_COLUMNS = ("Image", "Its likeness", "Split of that", "Label", "Label of that", "Same patient", "Found by", "Distance")


def _row(pair: _Pair) -> tuple[str | float, ...]:
    seen, first, second = pair.seen, pair.first, pair.second
    same = "yes" if seen.patients[first] == seen.patients[second] else "no"
    names = (str(values[place]) for values, place in (
        (seen.ids, first), (seen.ids, second), (seen.splits, second), (seen.labels, first), (seen.labels, second),
    ))  # fmt: skip
    return (*names, same, pair.by, pair.distance)


def _charts(
    audit: Audit,
    flags: Mapping[str, np.ndarray | str],
    near: list[_Near],
    pairs: list[_Pair],
    pictured: tuple[Case, ...],
    several: bool,
) -> Iterator[Chart]:
    if several:
        yield Table(
            "Audited images that the model may have seen before",
            "One row per way in which an audited image may be in another split.",
            ("Trace in another split", "Images", "Of", "Share", "Why not"),
            tuple(
                (_WORDS[by], None, None, None, found)
                if isinstance(found, str)
                else (
                    _WORDS[by],
                    int((found == 1).sum()),
                    int((found >= 0).sum()),
                    float((found[found >= 0] == 1).mean()),
                    "",
                )
                for by, found in flags.items()
            ),
        )
    if pairs:
        shown = pairs[:_LISTED]
        alt = f"The first {len(shown)} of {text.plural(len(pairs), 'pair')}: across splits, then other labels, then the rest."
        yield Table("Images that are nearly the same", alt, _COLUMNS, tuple(_row(pair) for pair in shown))
    if pictured:
        names = tuple(case.id for case in pictured)
        yield Images("Pairs of nearly the same images", "One row per pair.", names, ("image", "its likeness"))
    for each in near:
        if len(each.limit.null):
            yield _null_chart(each)


def _null_chart(near: _Near) -> Lines:
    """How near the nearest image of another patient is."""
    null = near.limit.null
    shares = np.arange(1, len(null) + 1) / len(null)
    chosen = np.unique(np.linspace(0, len(null) - 1, 60).astype(int))
    limit = near.limit.value
    told = (
        f"Pairs up to {text.number(limit)} are called nearly the same."
        if limit is not None
        else near.limit.reason or ""
    )
    return Lines(
        f"How alike different patients are, by {near.by}",
        f"Half of the images have one of another patient within {text.number(float(np.median(null)))}. {told}",
        Axis(
            f"Distance to the nearest image of another patient ({'bits of 512' if near.by == 'hash' else '1 − cosine'})",
            low=0,
        ),
        Axis("Share of audited images", low=0, high=1),
        (Series("nearest other patient", tuple(null[chosen].tolist()), tuple(shares[chosen].tolist()), marks=False),),
        () if limit is None else (Reference("threshold", limit, "x"),),
    )


def _caveats(near: list[_Near]) -> Iterator[str]:
    for each in near:
        if each.seen is None or each.limit.value is None:
            yield f"Near duplicates by {each.by}: not looked for ({each.limit.reason})."
        else:
            yield (
                f"Near duplicates by {each.by}: {each.seen.looked_at()} images compared; up to a distance of"
                f" {text.number(each.limit.value)}, which chance is expected to give 0.05 images of different patients."
            )
    if any(each.limit.value is not None for each in near):
        yield "Copies that were mirrored, turned or cropped by more than a pixel are not found by the hash."


def _sentences(flags: Mapping[str, np.ndarray | str], pairs: list[_Pair], several: bool) -> Iterator[str]:
    found = {by: int((values == 1).sum()) for by, values in flags.items() if not isinstance(values, str)}
    found = {by: number for by, number in found.items() if number}
    if several and found:
        told = ", ".join(f"{text.number(number, 'count')} by {_WORDS[by]}" for by, number in found.items())
        yield f"Audited images have a trace in another split: {told}."
    elif several and any(not isinstance(values, str) for values in flags.values()):
        yield "No audited image was found in another split."
    contradicted = sum(pair.kind == OTHER for pair in pairs)
    if contradicted:
        yield f"{text.plural(contradicted, 'pair')} of nearly the same audited images have different labels."
