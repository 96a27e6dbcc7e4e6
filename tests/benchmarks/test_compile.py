"""Compiled training is the same training: half a minute of compiling on a CPU, so not in the default suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.test_loop import PLAN, small, spots, weights
from xvision.training.loop import finetune


@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        model = small()
        finetune(model, spots(), spots(seed=1), replace(PLAN, compile=compiled), tmp_path / str(compiled))
        found.append(weights(model))
    assert (found[0] - found[1]).abs().max() < 1e-4
