"""Do two models decide for the same reasons, and by as much? Margins and heat maps of both, on the same cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from xvision.alignment import Aligned, aligned
from xvision.audit import Audit, metric
from xvision.config import Plan
from xvision.data.plan_data import load_plan_data
from xvision.engine import Batch, Engine, Rows
from xvision.methods.attribution import integrated_gradients, saliency
from xvision.methods.decision import Decision
from xvision.methods.intervals import bootstrap, proportion
from xvision.methods.paired import margins, mean_change, quantile_changes
from xvision.methods.randomisation import randomised_similarity
from xvision.models.finding import finding_view
from xvision.models.open import load_model
from xvision.models.protocols import Classifier
from xvision.result import Metric
from xvision.store import Run

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAPS = ("integrated_gradients", "saliency")
_FEWEST = 10
"""Patients below which a mean over them gets no interval."""


def margin_changes(before: Run, after: Run, *, seed: int, resamples: int = 2000) -> tuple[Metric, ...]:
    """How the margins of the same cases changed: mean, mean size, quantiles, and the share that came closer to an error.

    A margin is the log-odds by which a case is on the right side of the deployed threshold. Decisions show only the
    changes that cross 0; margins show those that nearly do.
    """
    both = aligned(before, after)
    if both.a.logits is None or both.b.logits is None:
        names = ("margin_change", "margin_change_size", "margin_shrunk")
        return tuple(Metric(name, None, reason="a run holds probabilities only") for name in names)
    first, second = (
        margins(logits, both.label_codes, _decision(run, both.classes))
        for run, logits in ((before, both.a.logits), (after, both.b.logits))
    )
    return tuple(_margin_metrics(both, first, second, seed, resamples))


def _margin_metrics(
    both: Aligned, first: np.ndarray, second: np.ndarray, seed: int, resamples: int
) -> Iterator[Metric]:
    change = second - first

    def rng(name: str) -> np.random.Generator:
        return np.random.default_rng([seed, *name.encode()])

    mean = mean_change(first, second, both.patients, rng=rng("mean"), resamples=resamples)
    yield metric("margin_change", mean.difference, better="higher", unit="log-odds")
    size = mean_change(np.zeros_like(change), np.abs(change), both.patients, rng=rng("size"), resamples=resamples)
    yield metric("margin_change_size", size.difference, better="lower", unit="log-odds")
    found = quantile_changes(change, both.patients, QUANTILES, rng=rng("quantiles"), resamples=resamples)
    for share, estimate in zip(QUANTILES, found, strict=True):
        yield metric("margin_change", estimate, better="higher", unit="log-odds", where={"quantile": share})
    yield metric("margin_shrunk", proportion(change < 0, both.patients), better="lower")


def _decision(run: Run, classes: tuple[str, ...]) -> Decision:
    """The deployed decision as the run states it, for logits in the order of ``classes``."""
    stated = run.info.decision
    if not stated.get("positive"):
        return Decision()
    return Decision(classes.index(str(stated["positive"])), float(stated["threshold"]), bool(stated.get("declared")))


def map_agreement(
    plan: Plan, before: Run, after: Run, paths: tuple[str, str], *, cases: int, steps: int
) -> tuple[Metric, ...]:
    """Rank correlation (Spearman) between the heat maps of both models, mean over the same sample of cases.

    paths: the two models. 1: the same pixels speak for and against, in the same order. Explained is the log-odds of the
    positive class, or of the class that the first model decided on. Where a model gives no gradients there is nothing to
    compare, and the reason is given. High agreement does not say that either map is right.
    """
    models = [_subject(load_model(path, device=plan.model.device), plan) for path in paths]
    closed = next((model for model in models if model.access != "white-box"), None)
    if closed is not None:
        reason = f"{closed.description.get('source', 'a model')} gives no gradients ({closed.access} access)"
        return tuple(_no_agreement(name, reason) for name in MAPS)
    data = load_plan_data(plan.data)
    if data.multilabel:
        data = data.finding(str(plan.decision.positive))
    audits = [
        Audit(model, data, _decision(before, model.classes), plan.seed, Engine(part=plan.batch_size), task="agreement")
        for model in models
    ]
    positions = audits[0].sample(cases)
    targets = _targets(before, audits[0])
    first, second = (
        audit.map(_measure(targets, steps), positions=positions, options={"steps": steps}) for audit in audits
    )
    patients = audits[0].patients[positions]
    return tuple(
        _mean_agreement(name, randomised_similarity(first[name], second[name]), patients, plan.seed) for name in MAPS
    )


def _subject(model: Classifier, plan: Plan) -> Classifier:
    return finding_view(model, plan.decision.positive) if model.task == "multilabel" else model


def _targets(before: Run, audit: Audit) -> dict[str, int]:
    """The class explained, by case."""
    if audit.decision.positive is not None:
        return dict.fromkeys(map(str, audit.ids), audit.decision.positive)
    table = before.predictions
    return {
        str(name): audit.classes.index(decision) for name, decision in zip(table["id"], table["decision"], strict=True)
    }


def _measure(targets: dict[str, int], steps: int) -> Callable[[Batch], Rows]:
    def measure(batch: Batch) -> Rows:
        chosen = torch.tensor([targets[name] for name in batch.ids], device=batch.pixels.device)
        maps = integrated_gradients(batch.model.logits, batch.pixels, chosen, baseline="blur", steps=steps)
        return {"integrated_gradients": maps.maps, "saliency": saliency(batch.model.logits, batch.pixels, chosen).maps}

    return measure


def _mean_agreement(name: str, values: np.ndarray, patients: np.ndarray, seed: int) -> Metric:
    """Mean over the cases whose maps are not constant."""
    defined = np.isfinite(values)
    kept, owners = values[defined].astype(float), patients[defined]
    if len(np.unique(owners)) < _FEWEST:
        return _no_agreement(name, f"fewer than {_FEWEST} patients with maps that vary")
    estimate = bootstrap(
        lambda weights: weights @ kept / weights.sum(axis=1), owners, rng=np.random.default_rng([seed, *name.encode()])
    )
    return metric("attribution_agreement", estimate, better="higher", where={"method": name})


def _no_agreement(name: str, reason: str) -> Metric:
    return Metric("attribution_agreement", None, better="higher", where={"method": name}, reason=reason)
