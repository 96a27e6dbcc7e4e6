"""The page: who is in the groups, the way of each gap, what was asked, and what other answers would change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xvision import text
from xvision.analyses.case_mix.answers import Named, Question, others
from xvision.analyses.case_mix.figures import Gaps
from xvision.audit import Audit
from xvision.charts import Axis, Chart, Forest, Mark, Reference, Table
from xvision.methods.groups.case_mix import Compared
from xvision.methods.groups.cases import UNKNOWN, Rate, largest_levels
from xvision.methods.groups.standardised import WITHIN_LABEL
from xvision.methods.intervals import Estimate

HIDES = "would hide harm that comes about through it"
_MOST_ROWS = 20
_MOST_GROUPS = 6
MOST_CLASSES = 3
_FOLLOWING: tuple[Rate, ...] = ("ppv", "npv", "selection_rate")


def mixes(audit: Audit, column: str) -> Table:
    """Sizes of the groups first, then what each consists of."""
    levels, patients, table = audit.column(column), audit.patients, audit.data.table
    known = largest_levels(levels)
    shown = sorted(known[:_MOST_GROUPS]) + [UNKNOWN] * bool((levels == UNKNOWN).any())
    member = {name: levels == name for name in shown}
    rows: list[tuple[str, ...]] = [
        ("images", *(text.number(float(side.sum()), "count") for side in member.values())),
        ("patients", *(text.number(float(len(np.unique(patients[side]))), "count") for side in member.values())),
    ]
    classes = [(name, audit.labels == code) for code, name in enumerate(audit.classes[:5])]
    rows += [(f"label {name}", *(_share(own, side) for side in member.values())) for name, own in classes]
    everyone = np.ones(len(levels), bool)
    parts = [(f"{name} cases", own) for name, own in classes] if len(classes) == 2 else [("cases", everyone)]
    listed = [(other, level) for other in others(audit, column) for level in sorted(set(table[other].astype(str)))]
    left = max(0, len(rows) + len(listed) - _MOST_ROWS)
    for other, level in listed[: _MOST_ROWS - len(rows)]:
        own = table[other].to_numpy(dtype=str) == level
        shares = (" | ".join(_share(own, side & cases) for _, cases in parts) for side in member.values())
        rows.append((text.condition({other: level}), *shares))
    alt = f"Shares are of {' | '.join(name for name, _ in parts)} of the group."
    hidden = max(0, len(known) - _MOST_GROUPS)
    alt += f" The {_MOST_GROUPS} largest groups are shown; {hidden} smaller ones are not." if hidden else ""
    alt += f" {text.plural(left, 'more level')} of other columns not shown." if left else ""
    return Table(
        f"{text.label(column)}: who is compared, and how the groups differ in mix", alt, ("", *shown), tuple(rows)
    )


def _share(own: np.ndarray, side: np.ndarray) -> str:
    return f"{100 * float(own[side].mean()):.0f} %" if side.any() else "–"


def forests(gaps: Gaps, audit: Audit) -> Iterator[Forest]:
    """One for sensitivity and one for specificity, where anything is evened out or could be."""
    if not any(named.column and named.kind != "what if" for named in gaps.steps):
        return
    for rate in WITHIN_LABEL:
        places = [place for place in gaps.shown(rate) if gaps.steps[place].kind != "what if"]
        most = max(1, _MOST_ROWS // len(places))
        pairs = gaps.compared[:most]
        marks = [_mark(gaps, pair, place, rate) for pair in pairs for place in places]
        if not any(mark.value is not None for mark in marks):
            continue
        said = [_way(gaps, pair, rate) for pair in pairs]
        of_class = f", {gaps.name} against the rest" if gaps.name else ""
        left = len(gaps.compared) - len(pairs)
        margin = audit.fairness.margin
        limits = () if margin is None else tuple(Reference("agreed margin", side, "x") for side in (-margin, margin))
        yield Forest(
            title=f"{text.label(gaps.column)}{of_class}: gap in {rate}, as found and at the same case mix",
            alt=" ".join(said) + (f" {text.plural(left, 'more group')} only among the figures." if left else ""),
            value=Axis(f"Difference in {rate}"),
            marks=tuple(marks),
            references=(Reference("no gap", 0.0, "x"), *limits),
        )


def step_words(named: Named) -> str:
    """What is made equal, for a row."""
    if named.kind == "mediator":
        return f"{'also ' if ' + ' in named.adjusted else ''}same {named.column} (mediator)"
    words = {"none": "as found", "prevalence": "same prevalence"}
    return words[named.adjusted] if not named.column else "same " + named.adjusted.replace(" + ", " and ")


def _mark(gaps: Gaps, pair: Compared, place: int, rate: Rate) -> Mark:
    figure, named = pair.steps[place].figures[rate], gaps.steps[place]
    label = f"{pair.group} − {pair.reference}: {step_words(named)}"
    if figure.gap.value is None:
        return Mark(label, None, note=f"not estimable ({figure.gap.reason})")
    note = f"n = {figure.group.n} and {figure.reference.n}"
    if named.column:
        covered = pair.steps[place].covered[rate == "sensitivity"].value or 0.0
        worth = " and ".join(f"{np.floor(each + 1e-9):.0f}" for each in figure.effective)
        note = HIDES if named.kind == "mediator" else f"{100 * covered:.0f} % of the mix, worth {worth}"
    return Mark(label, figure.gap.value, figure.gap.low, figure.gap.high, note)


def _way(gaps: Gaps, pair: Compared, rate: Rate) -> str:
    raw, last = (pair.steps[place].figures[rate].gap for place in (0, gaps.last))
    return f"{pair.group} − {pair.reference}: {_said(raw)} as found, {_said(last)} {step_words(gaps.steps[gaps.last])}."


def _said(estimate: Estimate) -> str:
    return text.value(estimate.value, estimate.low, estimate.high, reason=estimate.reason)


def _cut(rows: list[tuple[float, tuple[str, ...]]]) -> tuple[tuple[str, ...], ...]:
    """The rows with the largest figures where there are too many, in the order given."""
    kept = sorted(range(len(rows)), key=lambda place: -rows[place][0])[:_MOST_ROWS]
    return tuple(rows[place][1] for place in sorted(kept))


def _called(gaps: Gaps, pair: Compared) -> str:
    return ", ".join(filter(None, (gaps.name, f"{text.condition({gaps.column: pair.group})} − {pair.reference}")))


def following(found: list[Gaps]) -> Iterator[Table]:
    """Gaps that follow prevalence."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    evened = any(gaps.last > 1 for gaps in found)
    for gaps in found:
        for pair in gaps.compared:
            for rate in _FOLLOWING:
                places = (0, 1, gaps.last) if evened else (0, 1)
                figures = [pair.steps[place].figures[rate] for place in places]
                if figures[0].gap.value is not None:
                    cells = (_called(gaps, pair), text.label(rate), *(_said(figure.gap) for figure in figures))
                    rows.append((abs(figures[1].change.value or 0.0), cells))
    if rows:
        columns = ("Groups", "Figure", "As found", "Same prevalence", "Same mix of confounders")
        yield Table(
            "Gaps in figures that follow prevalence",
            f"{text.plural(len(rows), 'gap')} as found and at the same prevalence"
            + (f"; the {_MOST_ROWS} that prevalence moves most are shown." if len(rows) > _MOST_ROWS else "."),
            columns if evened else columns[:4],
            _cut(rows),
        )


def asked(found: list[Question]) -> Iterator[Table]:
    """The questions put to the auditor, with what was answered."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    for question in sorted(found, key=lambda each: not each.answer):
        strength, p = question.mix.strength, question.mix.p
        size = _said(strength) + ("" if p is None else ", p < 0.001" if p < 0.001 else f", p = {text.number(p)}")
        importance = 2.0 * bool(question.answer) + question.open + (strength.value or 0.0) / 2
        rows.append((importance, (question.column, question.other, size, question.answer or "none", question.words)))
    if rows:
        open_ones = sum(question.open for question in found)
        yield Table(
            "Why do the groups differ in mix? What was answered and what is open",
            f"{text.plural(open_ones, 'question')} open, {sum(bool(each.answer) for each in found)} answered"
            + (f"; {_MOST_ROWS} of {len(rows)} are shown." if len(rows) > _MOST_ROWS else "."),
            ("Groups of", "differ in", "How much (Cramér's V, 0 none, 1 complete)", "Answer in the plan", "Question, or what follows"),
            _cut(rows),
        )  # fmt: skip


def what_if(found: list[Gaps], questions: list[Question]) -> Iterator[Table]:
    """What answering an open question with "confounder" would do: exploratory."""
    open_ones = {(question.column, question.other) for question in questions if question.open}
    rows: list[tuple[float, tuple[str, ...]]] = []
    for gaps in found:
        for place, named in enumerate(gaps.steps):
            if named.kind != "what if" or (gaps.column, named.column) not in open_ones:
                continue
            for pair in gaps.compared:
                figures = [pair.steps[place].figures[rate] for rate in WITHIN_LABEL]
                if pair.ranked and any(figure.gap.value is not None for figure in figures):
                    moved = max(abs(figure.change.value or 0.0) for figure in figures)
                    parts = [part for figure in figures for part in (figure.gap, figure.change)]
                    cells = (_said(part) if part.value is not None else "–" for part in parts)
                    rows.append((moved, (_called(gaps, pair), named.column, *cells)))
    if rows:
        yield Table(
            "Exploratory: if an unanswered column were a confounder",
            "Not adjusted for in any other figure of this page."
            + (f" The {_MOST_ROWS} of {len(rows)} that move a gap most are shown." if len(rows) > _MOST_ROWS else ""),
            ("Groups", "If evened out", "Sensitivity: gap then", "Change", "Specificity: gap then", "Change of it"),
            _cut(rows),
        )


def page(audit: Audit, found: list[Gaps], questions: list[Question]) -> tuple[Chart, ...]:
    """Of several classes, those with the largest gaps are drawn."""
    drawn: list[Chart] = []
    for column in dict.fromkeys(gaps.column for gaps in found):
        drawn.append(mixes(audit, column))
        own = [gaps for gaps in found if gaps.column == column]
        largest = sorted(own, key=_size, reverse=True)[:MOST_CLASSES]
        drawn += [forest for gaps in own if gaps in largest for forest in forests(gaps, audit)]
    return (*drawn, *asked(questions), *following(found), *what_if(found, questions))


def _size(gaps: Gaps) -> float:
    """The largest gap as found, in sensitivity or specificity."""
    found = [pair.steps[0].figures[rate].gap.value for pair in gaps.compared if pair.ranked for rate in WITHIN_LABEL]
    return max((abs(value) for value in found if value is not None), default=0.0)
