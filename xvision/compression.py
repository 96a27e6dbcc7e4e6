"""A smaller model, never without the audit that says what it cost: ``xvision compress``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xvision import codec, text
from xvision.compare import Comparison, compare
from xvision.config import Plan
from xvision.engine import EngineKind
from xvision.result import Metric, named, spoken
from xvision.runner import Listener, run_plan
from xvision.store import Run, write_atomic
from xvision.training.agreement import map_agreement, margin_changes
from xvision.training.compress import EXPORTS, PRUNING, How, Size, compress, size


@codec.record
class CompressReport:
    """What compressing a model saved and what it cost. amount: share pruned, None for what prunes nothing."""

    how: How
    amount: float | None
    original: str
    compressed: str
    size_before: Size
    size_after: Size
    comparison: Comparison
    margins: tuple[Metric, ...]
    attributions: tuple[Metric, ...]

    def lines(self) -> tuple[str, ...]:
        """For the terminal: what was saved, then what it cost."""
        before, after = self.size_before, self.size_after
        part = f", {100 * self.amount:g} %" if self.amount is not None else ""
        saved = [
            f"{self.how}{part}: {self.compressed}",
            f"Weights on disk: {_mebibytes(before.bytes)} → {_mebibytes(after.bytes)} MiB",
            f"Parameters: {text.number(before.parameters, 'count')} → {text.number(after.parameters, 'count')}",
        ]
        if after.zeros is not None and after.zeros != before.zeros:
            saved.append(
                f"Of them exactly 0: {text.number(before.zeros, 'count')} → {text.number(after.zeros, 'count')}"
            )
        if before.flops and after.flops:
            saved.append(f"Operations per image: {before.flops:.3g} → {after.flops:.3g}")
        found = (f"{named(item)}: {spoken(item)}" for item in (*self.margins, *self.attributions))
        return (*saved, "", *self.comparison.lines(), "", *found)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g}"


def compress_and_audit(
    plan: Plan,
    how: How,
    out: Path,
    *,
    amount: float = 0.3,
    margin: float = 0.02,
    cases: int = 50,
    steps: int = 32,
    plan_file: str = "PLAN.toml",
    engine: EngineKind = "local",
    listener: Listener | None = None,
) -> CompressReport:
    """Compresses the plan's model, audits it before and after as the plan says, and compares the two.

    Into ``out`` go the compressed model, the runs ``before`` and ``after``, and ``comparison.json``. An interrupted call
    is continued by the same call. margin: the largest difference that does not matter. cases, steps: how many heat maps
    are compared, and their integration steps. plan_file: what the runs name as the plan that repeats them.
    """
    compressed = compress(plan.model.path, how, out / f"compressed{f'.{how}' if how in EXPORTS else ''}", amount=amount)
    smaller = replace(plan, name=f"{plan.name} {how}", model=replace(plan.model, path=str(compressed)))
    before, after = (
        _audited(audited, out / name, plan_file, engine, listener)
        for audited, name in ((plan, "before"), (smaller, "after"))
    )
    paths = (plan.model.path, str(compressed))
    report = CompressReport(
        how,
        amount if how in PRUNING else None,
        *paths,
        size(plan.model.path),
        size(compressed),
        compare(before, after, margin=margin, seed=plan.seed),
        margin_changes(before, after, seed=plan.seed),
        map_agreement(plan, before, after, paths, cases=cases, steps=steps),
    )
    write_atomic(out / "comparison.json", codec.dumps(codec.plain(report)).encode())
    return report


def _audited(plan: Plan, out: Path, plan_file: str, engine: EngineKind, listener: Listener | None) -> Run:
    command = f"xvision audit {plan_file} --model {plan.model.path} --out {out}"
    return run_plan(plan, out, command=command, engine=engine, listener=listener)
