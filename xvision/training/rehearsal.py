"""The images that an earlier checkpoint was trained on, so that re-tuning does not erase what it knew."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from xvision import codec
from xvision.config import DataPlan, Plan
from xvision.data.dataset import AuditDataset
from xvision.data.plan_data import load_plan_data
from xvision.errors import ConfigError, XVisionError
from xvision.models.folder import read_json


def old_data(plan: Plan) -> AuditDataset | None:
    """All splits of the earlier data: the plan's, or what the earlier checkpoint's run.json names. None where none is wanted.

    Raises ConfigError when rehearsal is on but the earlier data are not to be found: re-tuning without them forgets, and that
    has to be asked for (``training.rehearsal.share = 0``).
    """
    wanted = plan.training.rehearsal
    if not plan.backbone.start or wanted.share == 0:
        return None
    earlier = _recorded(Path(plan.backbone.start))
    if wanted.data is not None:
        earlier = replace(earlier or DataPlan(wanted.data), path=wanted.data)
    if earlier is None:
        raise ConfigError(
            f"{plan.backbone.start} does not say what it was trained on, so nothing of it can be rehearsed: give "
            "training.rehearsal.data, or set training.rehearsal.share to 0 to re-tune without."
        )
    if Path(earlier.path).resolve() == Path(plan.data.path).resolve():
        return None  # the same data again: nothing is forgotten
    try:
        found = load_plan_data(earlier)
        found.split("train")
        return found
    except XVisionError as problem:
        raise ConfigError(
            f"The data that {plan.backbone.start} was trained on cannot be rehearsed ({problem}) Give training.rehearsal.data, or "
            "set training.rehearsal.share to 0 to re-tune without."
        ) from None


def remembered(plan: Plan, out: Path) -> dict[str, Any]:
    """What run.json keeps of ``[data]``: its path relative to the checkpoint, so that both can move together."""
    path = os.path.relpath(Path(plan.data.path).resolve(), out.resolve())
    facts: dict[str, Any] = codec.plain(replace(plan.data, path=path))
    return facts


def _recorded(checkpoint: Path) -> DataPlan | None:
    run = checkpoint / "run.json"
    if not run.is_file():
        return None
    facts = read_json(run).get("data")
    source = facts.get("source") if isinstance(facts, dict) else None
    if source is None:
        return None
    found = codec.read(DataPlan, source, f"{run}: data.source", ConfigError)
    return replace(found, path=str((checkpoint / found.path).resolve()))
