"""What blur, noise, exposure, compression and burnt-in marks cost, and how far the model may be taken."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from xvision.analyses.corruption.figures import SEVERITIES, Figures
from xvision.analyses.corruption.page import cases_of, charts_of, pictured
from xvision.audit import Audit
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError, nearest
from xvision.methods.corruption_grid import Grid
from xvision.methods.corruptions import CORRUPTIONS, corrupt, kinds_of, psnr, severities_of, ssim
from xvision.registry import analysis
from xvision.result import Result

_LOOKED_AT = 50
"""Images on which the strength of the damage is measured, at most: it is nearly the same on all."""


@analysis("Corruption", pillar="Shift", need="pixels", passes="5 forward per kind, of which an X-ray has 31")
def corruption(
    audit: Audit,
    *,
    cases: int = 400,
    kinds: tuple[str, ...] = (),
    agreed_accuracy: float | None = None,
    agreed_sensitivity: float | None = None,
    reference_run: str = "",
    resamples: int = 500,
) -> Result:
    """What do noise, blur, exposure, compression and burnt-in marks cost, and how much of each may be allowed?

    Every image is damaged by every kind that its modality knows, at five severities, the same way whatever batch it is in.
    Severities follow published corruption sets where they exist; the measured peak signal-to-noise ratio (PSNR) and structural
    similarity (SSIM) say how strong each is here. ``retention`` is accuracy over clean accuracy on the same images; ``flip_rate``
    is the share of decisions that change, right or wrong. A side marker or a collimator border carries no diagnosis:
    decisions that flip with it show a shortcut. Kinds that may change the right decision, such as a swap of left and right, give
    flips only.

    The operating envelope says, for ``agreed_accuracy`` or ``agreed_sensitivity``, up to which severity the whole interval
    keeps what was agreed, and from which it misses it. ``reference_run``: the run folder of another model on the same data, for
    the mean corruption error (mCE, Hendrycks and Dietterich 2019) in percent of that model's.
    """
    names = _names(audit, kinds)
    agreed = {"accuracy": agreed_accuracy, "sensitivity": agreed_sensitivity}
    found = {name: value for name, value in agreed.items() if value is not None}
    if "sensitivity" in found and audit.decision.positive is None:
        raise ConfigError(
            "analysis.corruption.agreed_sensitivity needs a positive class: this model's decision has none."
        )
    positions = audit.sample(cases)
    looked_at = frozenset(str(name) for name in audit.ids[positions[:: -(-len(positions) // _LOOKED_AT)]])
    measure = partial(_measure, names=names, seed=audit.seed, modality=audit.modality, looked_at=looked_at)
    severities = {name: severities_of(name, audit.modality) for name in names}
    rows = audit.map(measure, positions=positions, options={"kinds": severities, "modality": audit.modality})
    clean = audit.predictions.logits[positions]
    grid = Grid(rows["logits"].astype(float), clean, audit.labels[positions], audit.patients[positions], audit.decision)
    figures = Figures(audit, grid, rows, positions, names, resamples)
    metrics = (*figures.overall(reference_run), *figures.cells, *figures.groups)
    stored = cases_of(audit, names)
    return Result(
        figures.summary(found),
        metrics,
        (
            *(figures.envelope(name, value) for name, value in found.items() if figures.judged),
            *charts_of(figures),
            *pictured(stored),
        ),
        stored,
        caveats=_caveats(audit, bool(found)),
    )


def _names(audit: Audit, kinds: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(kinds)) or tuple(name for name in kinds_of(audit.modality) if _shows(audit, name))
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(f"analysis.corruption.kinds: unknown kind {name!r}. {nearest(name, CORRUPTIONS)}")
        severities_of(name, audit.modality)  # refuses a kind that makes no sense for the modality
    return names


def _shows(audit: Audit, name: str) -> bool:
    """Whether the kind can be done to images of so many channels: colours cannot be changed where there are none."""
    spec = audit.model.input
    try:
        corrupt(torch.zeros(1, spec.channels, 32, 32), name, 1, ["none"], seed=0, modality=audit.modality)
    except ConfigError:
        return False
    return True


def _measure(
    batch: Batch, *, names: tuple[str, ...], seed: int, modality: str | None, looked_at: frozenset[str]
) -> Rows:
    """logits (B, kinds, severities, K); psnr and ssim (B, kinds, severities), NaN for images not looked at."""
    shape = (len(batch.ids), len(names), len(SEVERITIES))
    rows = {name: np.full(shape, np.nan) for name in ("psnr", "ssim")}
    logits: list[torch.Tensor] = []
    own = [place for place, name in enumerate(batch.ids) if name in looked_at]
    with torch.inference_mode():
        for kind, name in enumerate(names):
            for place, severity in enumerate(SEVERITIES):
                if place and not CORRUPTIONS[name].graded(modality):  # all or nothing: the same at every severity
                    logits.append(logits[-1])
                    continue
                damaged = corrupt(batch.pixels, name, severity, batch.ids, seed=seed, modality=modality)
                logits.append(batch.model.logits(damaged))
                if own:
                    rows["psnr"][own, kind, place:] = psnr(batch.pixels[own], damaged[own])[:, None]
                    rows["ssim"][own, kind, place:] = ssim(batch.pixels[own], damaged[own])[:, None]
    return {**rows, "logits": torch.stack(logits, dim=1).view(*shape, -1).cpu().numpy()}


def _caveats(audit: Audit, agreed: bool) -> tuple[str, ...]:
    said = ["Corruptions are simulated at the model's input size; effects of the scanner itself are not covered."]
    if audit.modality is None:
        said.append(
            "The plan does not say how the images were made (data.modality), so only kinds that make sense for every modality"
            " were tried, at general strengths."
        )
    if not agreed:
        said.append("No operating envelope: agree on an accuracy or a sensitivity before the audit (options agreed_…).")
    return tuple(said)
