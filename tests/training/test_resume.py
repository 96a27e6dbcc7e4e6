"""A training that is stopped and continued ends with the same weights, to the last bit, as one that never stopped."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.test_loop import small, spots, weights
from xvision.errors import ConfigError, ModelError, RunError
from xvision.models.checkpoint import load_model, save_model
from xvision.recipe import AttackPlan, GroupPlan, TrainingPlan
from xvision.training.loop import Arrays, Progress, finetune

ROOT = Path(__file__).parents[2]
PLAN = TrainingPlan(epochs=3, batch_size=4, augment=True, state_every=2, learning_rate=3e-3)
RECIPES = {
    "plain": PLAN,
    "average": replace(PLAN, ema=0.9),
    "sgd": replace(PLAN, optimizer="sgd", learning_rate=0.05),
    "parts": replace(PLAN, accumulate=2),
    "groups": replace(PLAN, groups=GroupPlan("sex", dro=True), select="worst group"),
    "attacked": replace(PLAN, attack=AttackPlan("pgd", steps=2)),
    "each epoch": replace(PLAN, state_every=0),
    "lora": replace(PLAN, policy="lora"),
    "adalora": replace(PLAN, policy="adalora"),
    "prompt": replace(PLAN, policy="prompt"),
    "head": replace(PLAN, policy="head", learning_rate=0.05),
    "weighted": replace(PLAN, class_weights=True, loss="focal"),
}


class Stopped(Exception):
    """Stands for the power cut."""


def data(seed: int = 0) -> Arrays:
    plain = spots(40, seed)
    return plain._replace(groups=plain.labels[::-1].copy() * 2 % 3, balance=plain.labels)


def trained(out: Path, plan: TrainingPlan, *, stop: int | None = None, resume: bool = False) -> torch.Tensor:
    model = small()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.2

    def watch(update: Progress) -> None:
        if stop is not None and update.step >= stop:
            raise Stopped

    finetune(model, data(), data(1), plan, out, resume=resume, progress=watch)
    return weights(model)


def logged(out: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in {"images_per_second", "mfu"}} for line in lines]


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_stopped_training_goes_on_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    plan = RECIPES[name]
    whole = trained(tmp_path / "whole", plan)
    for stop in (4, 13, 26):
        with pytest.raises(Stopped):
            trained(tmp_path / "cut", plan, stop=stop, resume=True)
    assert torch.equal(trained(tmp_path / "cut", plan, resume=True), whole)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert not (tmp_path / "cut.resume").exists()
    assert torch.equal(weights(load_model(tmp_path / "cut").module), whole)


KILLED = """
import sys
from pathlib import Path
from tests.training.test_resume import PLAN, trained
trained(Path(sys.argv[1]), PLAN, resume=True)
"""


def logged_lines(log: Path) -> int:
    """Lines of a log that may be away for an instant, while its folder is exchanged."""
    try:
        return len(log.read_text().splitlines())
    except FileNotFoundError:
        return 0


def killed_after(out: Path, lines: int) -> None:
    """Runs the training in a process of its own and kills it when the log has so many lines."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    log = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if logged_lines(log) >= lines:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert child.wait() == -signal.SIGKILL


def test_a_killed_process_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", PLAN)
    killed_after(tmp_path / "cut", 7)
    assert torch.equal(trained(tmp_path / "cut", PLAN, resume=True), whole)


def test_an_interrupted_training_is_not_started_over_without_asking(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", PLAN, stop=4)
    with pytest.raises(ConfigError, match=r"cut\.resume holds an interrupted training: continue it with --resume, or"):
        trained(tmp_path / "cut", PLAN)


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", PLAN, stop=4)
    with pytest.raises(ConfigError, match="interrupted training of another plan, model or data"):
        trained(tmp_path / "cut", replace(PLAN, learning_rate=1e-4), resume=True)
    assert trained(tmp_path / "cut", replace(PLAN, threads=2, state_every=5), resume=True).isfinite().all()


def test_a_damaged_state_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", PLAN, stop=4)
    state = tmp_path / "cut.resume" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(RunError, match=r"state\.safetensors: cannot be read .*Remove .*cut\.resume to start over"):
        trained(tmp_path / "cut", PLAN, resume=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """From the second epoch on no file may grow beyond 64 KiB: neither a better checkpoint nor the state can be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(update: Progress) -> None:
        if update.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))

    try:
        with pytest.raises(RunError, match=r"cannot be written .*[Ff]ree space"):
            finetune(small(), data(), data(1), PLAN, tmp_path / "cut", progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_model(tmp_path / "cut").classes == ("normal", "lesion")
    assert trained(tmp_path / "cut", PLAN, resume=True).isfinite().all()


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    """The old checkpoint is beside its folder, a half-written new one too, and the folder itself is gone."""
    whole = trained(tmp_path / "whole", PLAN)
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", PLAN, stop=13)
    (tmp_path / "cut").rename(tmp_path / ".cut.1.old")
    (tmp_path / ".cut.1.new").mkdir()
    assert torch.equal(trained(tmp_path / "cut", PLAN, resume=True), whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """No file may grow beyond 64 KiB when the best epoch is saved."""
    trained(tmp_path / "cut", PLAN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = (tmp_path / "cut" / "model.safetensors").read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
        with pytest.raises(RunError, match=r"cut: the model cannot be written .*Free space.*what was there stays"):
            save_model(small(), tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == kept
    assert {path.name for path in tmp_path.iterdir()} == {"cut"}


def test_without_a_state_resume_starts_at_the_beginning(tmp_path: Path) -> None:
    assert torch.equal(trained(tmp_path / "a", PLAN, resume=True), trained(tmp_path / "b", PLAN))


def test_a_training_that_diverged_leaves_no_state_to_diverge_again(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not finite at step 2 of"):
        finetune(
            small(), data(), data(1), replace(PLAN, learning_rate=1e30, warmup=0.0, state_every=1), tmp_path / "out"
        )
    assert not (tmp_path / "out.resume").exists()
