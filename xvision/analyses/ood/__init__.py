"""Whether the model notices an image that it was not made for."""

from __future__ import annotations

from xvision.analyses.ood import shown
from xvision.analyses.ood.judged import Judged
from xvision.audit import Audit
from xvision.errors import ConfigError
from xvision.registry import analysis
from xvision.result import NotApplicable, Result


@analysis(
    "Images it was not made for",
    pillar="Shift",
    need="pixels",
    passes="4 forward, 9 for a model with embeddings; 2 for each image of the reference and of named sets",
)
def ood(
    audit: Audit, *, cases: int = 400, reference_cases: int = 2000, neighbours: int = 10, resamples: int = 500
) -> Result:
    """Does the model notice an image it was not made for, and does its confidence fall?

    Audited images are compared with the sets that the plan names as near (could be mistaken for the right ones) and far, and with
    stand-ins made from the audited images: black, white and grey, noise, shuffled patches, inverted, upside down.
    ``confidence_change`` is the mean largest probability there minus that of the audited images; ``confident_share`` is the share
    decided at a probability of at least 0.9, where a model should not be sure. Eight scores, each higher for a more unlike image,
    are judged by ``auroc`` (outside images are the positive ones), ``aupr_out`` and ``aupr_in`` (average precision with the outside
    or the audited images as positive; both depend on how many of each there are) and ``fpr_at_95_tpr`` (the share of outside
    images that pass when 95 % of the audited ones do). Scores of embeddings are fitted on at most ``reference_cases`` cases of the
    split "train" or else "validation", never on audited ones. A high AUROC says that a monitor with this score could notice such
    images, not that there is one.
    """
    if neighbours < 1:
        raise ConfigError(f"analysis.ood.neighbours is {neighbours}: at least 1 is needed.")
    found = Judged(audit, cases, reference_cases, neighbours, resamples)
    if not len(found.clean.ids):
        raise NotApplicable("the model gives no finite number for any audited image")
    metrics = tuple(found.metrics())
    figures = shown.Figures(metrics)
    stored = shown.cases(audit)
    return Result(
        shown.summary(found, figures),
        metrics,
        shown.charts(found, figures, stored),
        stored,
        {"ood": found.table},
        shown.caveats(found),
    )
