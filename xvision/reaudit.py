"""The same audit of two models, and what differs: after re-tuning, and after making a model smaller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xvision import codec
from xvision.compare import Comparison, compare
from xvision.config import Plan
from xvision.runner import Listener, run_plan
from xvision.store import write_atomic


def audit_both(
    plan: Plan, before: str, after: str, out: Path, *, margin: float = 0.02, listener: Listener | None = None
) -> Comparison:
    """Audits both models as the plan says into ``out/before`` and ``out/after``; also writes ``out/comparison.json``.

    before, after: what ``--model`` takes. An interrupted call is continued by the same call.
    """
    runs = []
    for name, model in (("before", before), ("after", after)):
        place = out / name
        command = f"xvision audit PLAN.toml --model {model} --out {place}"
        runs.append(
            run_plan(replace(plan, model=replace(plan.model, path=model)), place, command=command, listener=listener)
        )
    comparison = compare(*runs, margin=margin, seed=plan.seed)
    write_atomic(out / "comparison.json", codec.dumps(codec.plain(comparison)).encode())
    return comparison
