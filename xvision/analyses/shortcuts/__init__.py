"""What else than the disease a decision goes by: a ladder from what could be used to what is the cause."""

from __future__ import annotations

from xvision.analyses.shortcuts.along import follows
from xvision.analyses.shortcuts.available import from_columns
from xvision.analyses.shortcuts.inside import inside
from xvision.analyses.shortcuts.ladder import joined, ladder, sizes, summary
from xvision.analyses.shortcuts.part import columns_of
from xvision.audit import Audit
from xvision.registry import analysis
from xvision.result import NotApplicable, Result


@analysis("Shortcuts", pillar="Fairness", need="scores", passes="1 embedding of each audited image")
def shortcuts(audit: Audit, *, minimum: int = 10, embeddings: int = 1000, resamples: int = 1000) -> Result:
    """What else than the disease does it go by?

    A ladder; each rung establishes more than the one before. Available: ``metadata_auroc`` is how well a column alone, without any
    image, predicts the label over all splits (Zech 2018); ``auroc_within`` is the model's AUROC among cases of the same level, where
    the column cannot help. Followed: ``dependence`` is how much the share of positive decisions differs between levels once the
    true label is held fixed, ``score_shift`` the same of the log-odds in standard deviations; ``aligned_accuracy_difference`` is the
    accuracy where a level says what the label says, less that where it says the opposite. Case mix can do all of that: only an
    intervention shows a cause. What counts as shown is controlled over all columns and rungs. Nothing found in these columns says
    nothing about a cue that no column records.
    """
    if not columns_of(audit):
        raise NotApplicable("no group or acquisition columns were declared; name them in the plan or with --groups")
    available = from_columns(audit, resamples)
    along = follows(audit, minimum, available.shown())
    encoded, used = inside(audit, embeddings, minimum, resamples)
    parts = {"available": available, "encoded": encoded, "followed": along, "used": used}
    found = joined(parts)
    return Result(
        summary(found),
        tuple(item for part in parts.values() for item in part.metrics),
        (*sizes(audit), *ladder(found), *(chart for part in parts.values() for chart in part.charts)),
        caveats=tuple(caveat for part in parts.values() for caveat in part.caveats),
    )
