"""Search over the training recipe by validation score. The test images are never looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvision import codec, text
from xvision.errors import ConfigError, MissingExtra, ModelError
from xvision.recipe import SearchPlan, TrainingPlan
from xvision.store import write_atomic
from xvision.training.record import Validation

_ALLOWED = "a list of choices, or a table with low, high and optionally log = true"


@dataclass(frozen=True)
class Trial:
    """One recipe that was tried. score: what the plan selects by, on validation; None when training diverged."""

    changes: Mapping[str, Any]
    score: float | None
    reason: str


def search(
    plan: TrainingPlan, wanted: SearchPlan, train: Callable[[TrainingPlan, Path], Validation], out: Path
) -> tuple[TrainingPlan, tuple[Trial, ...]]:
    """The best recipe found, and every trial; both are also written to ``search.json`` in ``out``.

    train: trains one recipe into a folder. Tree-structured Parzen estimator (Bergstra et al., 2011) by Optuna, with the
    plan's seed. The best of many trials looks better on validation than it is: judge it on the test split only. Raises
    ConfigError for a space that cannot be searched and ModelError when every trial diverged.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtra("optuna", "search", "xvision finetune --search") from None
    _check(plan, wanted)
    trials: list[Trial] = []

    def objective(trial: Any) -> float:
        changes = {name: _suggest(trial, name, space) for name, space in wanted.space.items()}
        recipe = _changed(plan, changes)
        try:
            scores = train(recipe, out / f"trial-{trial.number:03d}")
        except ModelError as problem:
            trials.append(Trial(changes, None, str(problem)))
            raise optuna.TrialPruned from None
        score = scores.rank(plan.select)[0]
        trials.append(Trial(changes, score, ""))
        return score

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=plan.seed))
    study.optimize(objective, n_trials=wanted.trials)
    known = [trial for trial in trials if trial.score is not None]
    if not known:
        raise ModelError(f"None of the {len(trials)} recipes could be trained; the first: {trials[0].reason}")
    best = max(known, key=lambda trial: trial.score or 0.0)
    facts = {
        "best": dict(best.changes), "score": best.score, "selected by": plan.select,
        "trials": [{"changes": dict(trial.changes), "score": trial.score, "reason": trial.reason} for trial in trials],
    }  # fmt: skip
    write_atomic(out / "search.json", json.dumps(facts, indent=2, allow_nan=False).encode())
    return _changed(plan, best.changes), tuple(trials)


def told(trials: tuple[Trial, ...]) -> str:
    """One line per trial, best first."""
    ordered = sorted(trials, key=lambda trial: -1.0 if trial.score is None else trial.score, reverse=True)
    rows = []
    for trial in ordered:
        changes = ", ".join(
            f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in trial.changes.items()
        )
        rows.append(f"{text.number(trial.score) if trial.score is not None else 'diverged':>9}  {changes}")
    return "\n".join(rows)


def _check(plan: TrainingPlan, wanted: SearchPlan) -> None:
    if not wanted.space or wanted.trials < 1:
        raise ConfigError(
            "[search] needs at least one trial and a table [search.space]: learning_rate = [3e-4, 1e-3] is one."
        )
    for name, space in wanted.space.items():
        ranged = isinstance(space, Mapping) and {"low", "high"} <= space.keys() <= {"low", "high", "log"}
        if not ranged and not (isinstance(space, list) and space):
            raise ConfigError(f"search.space.{name} is {space!r}: give {_ALLOWED}.")
        _changed(plan, {name: space["low"] if isinstance(space, Mapping) else space[0]})


def _suggest(trial: Any, name: str, space: Any) -> Any:
    if isinstance(space, list):
        return space[trial.suggest_categorical(name, list(range(len(space))))]
    low, high, log = space["low"], space["high"], bool(space.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


def _changed(plan: TrainingPlan, changes: Mapping[str, Any]) -> TrainingPlan:
    """The recipe with other values; a dot reaches into a table, as in ``adapter.rank``."""
    data = codec.plain(plan)
    for name, value in changes.items():
        *tables, key = name.split(".")
        inner = data
        for table in tables:
            inner = inner.setdefault(table, {}) if isinstance(inner, dict) else {}
        inner[key] = value
    return codec.read(TrainingPlan, data, "search.space", ConfigError)
