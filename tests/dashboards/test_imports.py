"""The dashboard opens where neither torch nor the library's heavy half is installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
for name in ("torch", "transformers", "captum", "foolbox", "fairlearn", "matplotlib", "typst"):
    sys.modules[name] = None
import dashboards.app, dashboards.launch, dashboards.gate
heavy = ("xvision.audit", "xvision.runner", "xvision.models", "xvision.methods", "xvision.analyses", "xvision.judge", "reports")
print(sorted(name for name in sys.modules if name.startswith(heavy)))
"""


def test_it_imports_with_torch_blocked_and_loads_only_what_reads_a_run() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
