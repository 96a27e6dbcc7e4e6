"""Fine-tuning in several processes as a user starts them: torchrun and Ray give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from xvision.data.synthetic import PhantomSettings, write_phantoms

PLAN = """
[data]
path = "phantoms"
[decision]
positive = "lesion"
threshold = 0.5
[model]
path = "one"
[backbone]
image_size = 32
[training]
epochs = 2
controls = false
"""
RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "xvision.cli"]
PLAIN = [sys.executable, "-m", "xvision.cli"]


@pytest.mark.benchmark
@pytest.mark.parametrize(("launcher", "words"), [(RUN, []), (PLAIN, ["--ray", "2"])], ids=["torchrun", "ray"])
def test_two_processes_give_what_one_gives(launcher: list[str], words: list[str], tmp_path: Path) -> None:
    write_phantoms(PhantomSettings(n=300, seed=1), tmp_path / "phantoms")
    (tmp_path / "plan.toml").write_text(PLAN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for start, out, more in ((PLAIN, "one", []), (launcher, "two", words)):
        command = [*start, "finetune", "plan.toml", "--out", str(tmp_path / out), *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Checkpoint:" in done.stdout
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    assert json.loads((tmp_path / "two" / "run.json").read_text())["result"]["processes"] == 2
