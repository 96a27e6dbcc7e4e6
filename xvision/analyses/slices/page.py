"""Tables, the forest and the pictures of a search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xvision import images, text
from xvision.analyses.slices.part import Found, said
from xvision.audit import Audit
from xvision.charts import Axis, Chart, Forest, Images, Mark, Reference, Table
from xvision.methods.slices.search import Slice
from xvision.result import Case

_PICTURED = 3
_EXAMPLES = 6
_WRONG = 4
"""Of the examples, at most so many that are wrong are taken first."""
_SOURCES = {
    "columns": "columns",
    "mixture": "mixture of embeddings",
    "k-means": "k-means of embeddings",
    "direction": "direction of errors",
}


def charts(found: Found) -> Iterator[Chart]:
    search = found.search
    if search.reason:
        return
    yield _sizes(found)
    if search.slices:
        yield _forest(found)
        yield _candidates(found)
    if search.confirmed:
        yield _described(found)


def _sizes(found: Found) -> Table:
    rows = []
    for name, half in (("finds slices", found.search.discover), ("checks them", ~found.search.discover)):
        patients = len(np.unique(found.cases.patients[half]))
        wrong = int(found.cases.errors[half].sum())
        rows.append((name, int(half.sum()), patients, wrong, f"{100 * wrong / max(int(half.sum()), 1):.1f} %"))
    return Table(
        title="Who was searched",
        alt=f"Two halves of {rows[0][2]} and {rows[1][2]} patients.",
        columns=("Half", "Images", "Patients", "Errors", "Error"),
        rows=tuple(rows),
        counts=("Images", "Patients", "Errors"),
    )


def _forest(found: Found) -> Forest:
    marks = tuple(_mark(name, item) for name, item in zip(found.names, found.search.slices, strict=True))
    confirmed = len(found.search.confirmed)
    told = [f"{mark.label} {text.value(mark.value, mark.low, mark.high)}" for mark in marks[:3]]
    return Forest(
        title="How much more each candidate errs than the rest, on patients who had no part in finding it",
        alt=f"{text.plural(len(marks), 'candidate')}, {confirmed} confirmed: {'; '.join(told)}.",
        value=Axis("Difference in error within the label"),
        marks=marks,
        references=(Reference("as the rest", 0.0, "x"),),
    )


def _mark(name: str, item: Slice) -> Mark:
    gap = item.checked.difference
    note = f"n = {text.number(item.checked.patients, 'count')}, {item.verdict}"
    return Mark(name, gap.value, gap.low, gap.high, note, n=item.checked.patients)


def _candidates(found: Found) -> Table:
    rows = tuple(
        (
            name, _SOURCES[item.candidate.kind], item.checked.cases, item.checked.patients, item.found.difference.value,
            item.checked.difference.value, item.checked.error.value, item.checked.rest, item.adjusted, item.verdict,
        )
        for name, item in zip(found.names, found.search.slices, strict=True)
    )  # fmt: skip
    shrunk = [(row[4], row[5]) for row in rows if isinstance(row[4], float) and isinstance(row[5], float)]
    mean = [text.number(float(np.mean([pair[side] for pair in shrunk]))) for side in (0, 1)] if shrunk else ["–", "–"]
    return Table(
        title="What became of each candidate: as found, and on other patients",
        alt=f"{text.plural(len(rows), 'candidate')}: on average {mean[0]} more errors as found and {mean[1]} when checked.",
        columns=(
            "Slice", "Found by", "Images", "Patients", "Difference as found", "Difference checked", "Error", "Error of the rest",
            "p", "Outcome",
        ),
        rows=rows,
        counts=("Images", "Patients"),
    )  # fmt: skip


def _described(found: Found) -> Table:
    rows = []
    for name, item in zip(found.names, found.search.confirmed, strict=False):
        labels, decisions = found.mix(item)
        own = item.candidate.kind == "columns"
        told = "these columns define it" if own else said(found.described(item)) or "no recorded column describes it"
        again = "–" if item.stability is None else f"{100 * item.stability:.0f} %"
        rows.append((name, told, labels, decisions, again))
    return Table(
        title="Who is in each confirmed slice",
        alt="; ".join(f"{row[0]}: {row[1]}" for row in rows[:3]) + ".",
        columns=("Slice", "Over-represented", "Labels", "Decisions", "Found again"),
        rows=tuple(rows),
    )


def pictured(audit: Audit, found: Found) -> tuple[tuple[Case, ...], tuple[Images, ...]]:
    """Examples of the first confirmed slices, each beside a typical case of the same label outside all of them."""
    if not audit.pictures or not found.search.confirmed:
        return (), ()
    outside = ~np.any([item.candidate.members for item in found.search.confirmed], axis=0)
    stored: dict[str, Case] = {}
    shown = []
    for name, item in zip(found.names, found.search.confirmed[:_PICTURED], strict=False):
        own, beside = f"in {name}", f"beside {name}: the rest, same label"
        examples = _examples(found, item)
        partners = _typical(found, examples, outside)
        for member, partner in zip(examples, partners, strict=True):
            place = int(found.order[member])
            key = str(audit.ids[place])
            pictures = {own: _picture(audit, place)}
            if partner >= 0:
                pictures[beside] = _picture(audit, int(found.order[partner]))
            before = stored[key].pictures if key in stored else {}
            stored[key] = Case(key, audit.facts(place), {**before, **pictures})
        keys = tuple(str(audit.ids[found.order[member]]) for member in examples)
        columns = (own, beside) if all(beside in stored[key].pictures for key in keys) else (own,)
        shown.append(
            Images(
                f"Slice {name}: what do these have in common that the others lack?",
                f"{text.plural(len(keys), 'case')} of the slice, each beside a typical case of the rest.",
                keys,
                columns,
            )
        )
    return tuple(stored.values()), tuple(shown)


def _picture(audit: Audit, place: int) -> images.Picture:
    return images.enlarged(images.photograph(audit.pixels([place])[0]))


def _examples(found: Found, item: Slice) -> np.ndarray:
    """Cases of the confirm half that belong most clearly, at most ``_WRONG`` wrong ones first."""
    members = np.flatnonzero(~found.search.discover & item.candidate.members)
    members = members[np.argsort(-item.candidate.typical[members], kind="stable")]
    wrong = members[found.cases.errors[members]][:_WRONG]
    others = members[~np.isin(members, wrong)]
    return np.concatenate([wrong, others])[:_EXAMPLES]


def _typical(found: Found, examples: np.ndarray, outside: np.ndarray) -> list[int]:
    """For each example another case outside of the same label, rightly decided, nearest to the middle of those; −1 for none."""
    cases, partners, used = found.cases, [], set[int]()
    for member in examples:
        own = np.flatnonzero(outside & ~cases.errors & (cases.labels == cases.labels[member]))
        if not len(own):
            partners.append(-1)
            continue
        away = ((cases.embeddings[own] - cases.embeddings[own].mean(axis=0)) ** 2).sum(axis=1)
        order = own[np.argsort(away, kind="stable")]
        partners.append(next((int(place) for place in order if int(place) not in used), int(order[0])))
        used.add(partners[-1])
    return partners
