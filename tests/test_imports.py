"""What may be imported where: the public names, and the parts that work without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xvision

ROOT = Path(__file__).parents[1]
BLOCK = "import sys\nfor name in ('torch', 'transformers', 'torchvision', 'timm', 'captum', 'foolbox'): sys.modules[name] = None\n"


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_public_names_are_these() -> None:
    assert xvision.__all__ == ["__version__", "judge_run", "load_data", "load_model", "open_run", "run_audit"]
    assert all(getattr(xvision, name) for name in xvision.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xvision.nothing


def test_importing_xvision_imports_no_torch() -> None:
    done = python("import sys, xvision; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0


@pytest.mark.parametrize(
    "statement",
    [
        "import xvision; xvision.open_run; xvision.judge_run; xvision.load_data",
        "import xvision.store, xvision.judge, xvision.cli, xvision.data.manifest, xvision.data.synthetic",
        "import dashboards.app, dashboards.charts",
        "import reports.build, reports.charts",
    ],
)
def test_reading_works_without_torch(statement: str) -> None:
    done = python(BLOCK + statement)
    assert done.returncode == 0, done.stderr


def test_auditing_needs_no_torchvision_and_no_timm() -> None:
    script = (
        "import sys\nfor name in ('torchvision', 'timm'): sys.modules[name] = None\nimport xvision.runner, xvision.demo"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr


DOORS = {
    "captum": "xvision/methods/attribution.py", "foolbox": "xvision/attacks/foolbox_", "fairlearn": "xvision/methods/groups/fairlearn_",
    "transformers": "xvision/models/", "pydicom": "xvision/data/dicom.py", "pydantic": "xvision/codec.py", "ray": "xvision/cluster.py",
    "rich": "xvision/console.py", "timm": "xvision/models/timm_model.py", "peft": "xvision/models/llm/adapters.py",
    "torchao": "xvision/models/quantised.py", "onnxruntime": "xvision/models/", "onnx": "xvision/models/",
    "optuna": "xvision/training/search.py",
    "tensorboard": "xvision/training/trackers.py", "wandb": "xvision/training/trackers.py", "datasets": "xvision/data/hf_datasets.py",
    "cleanlab": "xvision/methods/label_issues.py", "tokenizers": "xvision/models/",
    "streamlit": "dashboards/", "plotly": "dashboards/", "matplotlib": "reports/", "typst": "reports/",
}  # fmt: skip


@pytest.mark.parametrize("package", list(DOORS))
def test_each_dependency_has_one_door(package: str) -> None:
    importers = {path.relative_to(ROOT).as_posix() for path in _sources() if package in _imported(path)}
    assert importers
    assert all(name.startswith(DOORS[package]) for name in importers), importers


@pytest.mark.parametrize("package", ["torchvision", "pickle", "joblib", "dill"])
def test_some_packages_are_never_imported(package: str) -> None:
    assert [path for path in _sources() if package in _imported(path)] == []


def _sources() -> list[Path]:
    return [path for folder in ("xvision", "dashboards", "reports") for path in (ROOT / folder).rglob("*.py")]


def _imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
