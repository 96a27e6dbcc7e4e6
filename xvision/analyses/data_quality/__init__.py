"""Whether the data can carry the audit: leakage, copies, doubtful labels, missing metadata, faulty images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xvision.analyses.data_quality.columns import columns
from xvision.analyses.data_quality.copied import copied
from xvision.analyses.data_quality.doubted import doubted
from xvision.analyses.data_quality.gathered import Gathered, all_splits, embedded, hashed
from xvision.audit import Audit, count
from xvision.charts import Chart, Table
from xvision.errors import ConfigError
from xvision.methods.image_faults import FAULTS
from xvision.registry import analysis
from xvision.result import Metric, Result

_LISTED = 20


@analysis(
    "Data quality",
    pillar="Other",
    need="scores",
    passes="at most 1 embedding of each image of every split, and 1 decoding without a pass",
)
def data_quality(audit: Audit, *, cases: int = 20_000, embeddings: int = 2000, permutations: int = 1999) -> Result:
    """Can the data carry the audit?

    ``leaked_share`` is the share of audited images that have a trace in another split: their patient, their bytes, nearly the same
    image (difference hash of 512 bits, moved by up to a pixel) or nearly the same embedding. What counts as nearly the same is read
    off the data: nearest images of *different* patients are expected to come as near in 0.05 images at most. ``copies_found`` says
    what share of copies made on purpose this finds. ``repeated_images`` are audited twice, among them copies with another label.
    ``label_noise`` estimates the share of wrong labels (confident joint, Northcutt 2021) by the model's scores and by logistic
    regression on the embeddings of other patients: it counts confident mistakes of the model, so it is an upper figure.
    ``association`` is Cramér's V of a column with the label or the split; ``metadata_auroc`` is how well a column alone predicts
    the label: a shortcut that is available, not one that is taken. At most ``cases`` images of each split are hashed and
    ``embeddings`` embedded, drawn at random. Nothing found here is no proof of clean data.
    """
    if cases < 1 or embeddings < 1:
        raise ConfigError(
            f"data_quality.cases is {cases} and embeddings {embeddings}: at least 1 image must be looked at."
        )
    splits = all_splits(audit)
    seen = None if audit.can("pixels") else hashed(splits, cases)
    apart = None if audit.can("embeddings") else embedded(splits, embeddings)
    copies = copied(audit, seen, apart)
    labels, table = doubted(audit, apart)
    who = columns(audit, permutations=permutations)
    metrics = (*copies.metrics, *labels.metrics, *_faults(audit, seen), *who.metrics)
    sentences = (*copies.sentences, *labels.sentences, *who.sentences)
    charts = (*copies.charts, *labels.charts, *who.charts, *_fault_table(seen))
    shown = {case.id: case for case in (*labels.cases, *copies.cases)}
    return Result(
        " ".join(sentences) or "Nothing was found that speaks against the data, among what could be looked at.",
        metrics,
        charts,
        tuple(shown.values()),
        {"data_quality": table},
        (
            *copies.caveats,
            *labels.caveats,
            *who.caveats,
            "The proportions of the original image files are not looked at.",
        ),
    )


def _faults(audit: Audit, seen: Gathered | None) -> Iterator[Metric]:
    for fault in FAULTS:
        where = {"fault": fault}
        if seen is None:
            yield Metric("faulty_images", None, unit="count", where=where, reason=audit.can("pixels") or "")
        else:
            yield count("faulty_images", int((seen.faults[seen.audited] == fault).sum()), where=where)


def _fault_table(seen: Gathered | None) -> Iterator[Chart]:
    if seen is None or not (seen.faults != "").any():
        return
    places = np.flatnonzero(seen.faults != "")
    rows = tuple((str(seen.ids[place]), str(seen.splits[place]), str(seen.faults[place])) for place in places[:_LISTED])
    alt = f"{len(rows)} of {len(places)} images of all splits that are constant, almost uniform or mostly border."
    yield Table("Images that show next to nothing", alt, ("Image", "Split", "Fault"), rows)
