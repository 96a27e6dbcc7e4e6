"""The shortcut ladder on phantoms over five seeds: a planted marker is shown to be the cause, its clean twin raises nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tests.analyses.shifted import SIDE, pooled_model
from tests.benchmarks.harness import Row, row
from xvision.analyses.shortcuts import shortcuts
from xvision.audit import Audit
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.result import Result

SEEDS = range(5)
_QUIET = ("Nothing was found", "Encoded, not shown to be used")


def shortcut_rows() -> Iterator[Row]:
    """Rows of the benchmark. The linear model of field means learns the marker where there is one."""
    marked, clean = [[_ladder(seed, strength) for seed in SEEDS] for strength in (0.9, 0.0)]
    used = [_ladder(seed, 0.9, learned=0.0) for seed in SEEDS]
    caused = sum(found.summary.startswith("Shortcut shown (causal): site (mark of B") for found in marked)
    yield row(
        "phantoms, marker follows the label in training: cause shown", f"{caused} of 5", "5 of 5", caused == 5,
        "shortcuts, summary names the site's mark",
    )  # fmt: skip
    others = sum(_accused(found, "sex", "age_band", "scanner") for found in marked)
    yield row(
        "the same phantoms: columns without effect accused", f"{others} of 5", "0 of 5", others == 0,
        "shortcuts, sex, age band and scanner followed or used",
    )  # fmt: skip
    alarms = sum(not found.summary.startswith(_QUIET) for found in clean)
    yield row(
        "phantoms, clean twin: anything available, followed or caused", f"{alarms} of 5", "0 of 5", alarms == 0,
        "shortcuts, summary",
    )  # fmt: skip
    wrong = sum(_accused(found, "site") for found in used)
    yield row(
        "marker in the data, model blind to the corner: site accused", f"{wrong} of 5", "0 of 5", wrong == 0,
        "shortcuts, site followed, used or caused",
    )  # fmt: skip


def _ladder(seed: int, shortcut: float, *, learned: float | None = None) -> Result:
    """learned: the shortcut of the phantoms that the model was fitted on, its corner blacked out; as audited unless given."""
    data = phantom_dataset(_settings(seed, shortcut))
    model = pooled_model(data if learned is None else phantom_dataset(_settings(seed, learned)))
    if learned is not None:
        model.module[2].weight.view(8, 8)[:4, :4] = 0.0
    decision = Decision(1, 0.5, True)
    audit = Audit(model, data, decision, seed, Engine(), ("sex", "age_band"), ("site", "scanner"), task="shortcuts")
    return shortcuts(audit)


def _settings(seed: int, shortcut: float) -> PhantomSettings:
    return PhantomSettings(
        n=1500, seed=seed, size=SIDE, contrast=0.6, shortcut=shortcut, visits=2, fractions=(0.4, 0.3, 0.3)
    )


def _accused(found: Result, *columns: str) -> bool:
    (ladder,) = [chart for chart in found.charts if chart.title == "Shortcut ladder"]
    rows = {str(row[0]): str(row[-1]) for row in ladder.rows}
    return any("follows" in rows[name] or "causal" in rows[name] for name in columns)
