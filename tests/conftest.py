"""Shared real things, made once: phantoms on disk, a small classifier, and an audit of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xvision.data.synthetic import PhantomSettings, write_phantoms
from xvision.models.checkpoint import save_model
from xvision.models.llm.classifier import preset

torch.set_num_threads(
    1
)  # two OpenMP threads on a busy machine are slower than one, and results then depend on the machine

SMALL = PhantomSettings(n=150, seed=3, contrast=0.6)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 clean phantoms with masks; about 30 in the test split."""
    return write_phantoms(SMALL, tmp_path_factory.mktemp("data") / "phantoms")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny classifier: its numbers are real, only poor."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(preset("tiny-qwen3", seed=0), folder)
    return folder
