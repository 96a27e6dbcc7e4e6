"""xvision audits medical image classifiers: how far a model can be trusted, for whom, and why.

    model = xvision.load_model("checkpoint")
    data = xvision.load_data("manifest.csv", groups=["sex", "site"])
    run = xvision.run_audit(model, data, out="runs/first", acquisition=["site"])
    run.metrics

Importing this package imports no torch; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvision.data.manifest import load_data
    from xvision.judge import judge_run
    from xvision.models.open import load_model
    from xvision.runner import run_audit
    from xvision.store import open_run

__version__ = "0.1.0"
__all__ = ["__version__", "judge_run", "load_data", "load_model", "open_run", "run_audit"]

_HOME = {
    "judge_run": "xvision.judge",
    "load_data": "xvision.data.manifest",
    "load_model": "xvision.models.open",
    "open_run": "xvision.store",
    "run_audit": "xvision.runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xvision' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
