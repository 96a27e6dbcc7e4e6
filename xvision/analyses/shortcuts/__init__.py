"""What else than the disease a decision goes by: a ladder from what could be used to what is the cause."""

from __future__ import annotations

from xvision.analyses.shortcuts.along import follows
from xvision.analyses.shortcuts.available import from_columns
from xvision.analyses.shortcuts.causal import caused, suspected
from xvision.analyses.shortcuts.edges import alone, at_the_edge, looked
from xvision.analyses.shortcuts.inside import inside
from xvision.analyses.shortcuts.ladder import joined, ladder, sizes, summary
from xvision.analyses.shortcuts.part import Part, columns_of
from xvision.audit import Audit
from xvision.methods.shortcuts.ladder import Rung
from xvision.registry import analysis
from xvision.result import NotApplicable, Result
from xvision.targets import NO_COLUMNS

_ORDER = ("followed", "causal", "used", "available", "encoded")
"""Of the numbers: those that decide most come first."""


@analysis(
    "Shortcuts",
    pillar="Fairness",
    need="scores",
    passes="1 embedding of each audited image; on at most 200 images 2 and 2 for each suspected mark; 50 gradients",
)
def shortcuts(
    audit: Audit,
    *,
    boxes: tuple[tuple[float, ...], ...] = (),
    cases: int = 200,
    border: float = 0.15,
    minimum: int = 10,
    embeddings: int = 1000,
    resamples: int = 1000,
) -> Result:
    """What else than the disease does it go by?

    A ladder; each rung establishes more than the one before, and only the last a cause. Available: ``metadata_auroc`` is how well
    a column alone tells the label over all splits (Zech 2018), ``statistic_auroc`` how well a trivial figure of the image does;
    ``auroc_within`` is the model's AUROC within levels. Encoded: ``probe_auroc``, how well the embeddings tell a level; much is
    encoded and not used. Followed: ``dependence``, how much the share of positive decisions differs between levels at the same
    true label; ``score_shift``, the same of the log-odds; ``aligned_accuracy_difference``, accuracy where a level says what the
    label says less that where it says the opposite; ``outside_auroc``, the model on the frame alone. Case mix can do all of that.
    Used: ``removal_flip_rate``, decisions that change without the column's direction in the embeddings, beside random ones.
    Causal: ``cue_effect``, the log-odds with a mark less without it, where another patient's patch puts it in or takes it out,
    beside a placebo: the same elsewhere. Marks are looked for near the edge where the mean images of a suspected column's levels
    differ, or lie in ``boxes``: [left, top, right, bottom] as shares of the sides. ``attribution_outside`` is a hint and no verdict.
    What counts as shown is controlled over columns and rungs. Nothing found says nothing of a cue that no column records.
    """
    pictured = audit.can("pixels") is None
    if not columns_of(audit) and not pictured:
        raise NotApplicable(NO_COLUMNS)
    available = from_columns(audit, resamples)
    along = follows(audit, minimum, available.shown())
    encoded, used = inside(audit, embeddings, minimum, resamples)
    ladders = [{"available": available, "encoded": encoded, "followed": along, "used": used}]
    if pictured:
        suspects = [key[1] for part in (available, along, used) for key in sorted(part.shown())]
        ladders += _interventions(audit, tuple(dict.fromkeys(suspects)), boxes, cases, border, minimum, resamples)
    else:
        reason = str(audit.can("pixels"))
        ladders[0]["causal"] = Part(rungs={key: Rung("left out", reason) for key in available.rungs})
    found = joined(ladders)
    parts = [part for each in ladders for part in each.values()]
    return Result(
        summary(found),
        tuple(item for name in _ORDER for each in ladders if name in each for item in each[name].metrics),
        (*sizes(audit), *ladder(found), *(chart for part in parts for chart in part.charts)),
        tuple({case.id: case for part in parts for case in part.cases}.values()),
        caveats=(*(caveat for part in parts for caveat in part.caveats), *_missing(audit)),
    )


def _interventions(
    audit: Audit,
    suspects: tuple[str, ...],
    boxes: tuple[tuple[float, ...], ...],
    cases: int,
    border: float,
    minimum: int,
    resamples: int,
) -> list[dict[str, Part]]:
    """What needs pixels: the edge of the images, and marks put in and taken out."""
    seen = looked(audit, 2 * cases, border)
    edge = {
        "available": at_the_edge(audit, seen),
        "followed": alone(audit, cases, border, set(suspects), minimum, resamples),
    }
    cues, reasons = suspected(audit, seen, boxes, suspects)
    return [edge, {"causal": caused(audit, cues, reasons, cases)}]


def _missing(audit: Audit) -> tuple[str, ...]:
    return () if columns_of(audit) else (f"Only the images were looked at: {NO_COLUMNS}.",)
