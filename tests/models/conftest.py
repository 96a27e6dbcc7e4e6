"""Folders and archives made once for every test of models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.models.archives import Net, named, save
from tests.models.vlm_builders import save_vlm


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as anyone writes it, with its classes beside it."""
    return named(save(Net(), tmp_path_factory.mktemp("archive") / "net.pt2", dim=torch.export.Dim("batch")))


@pytest.fixture(scope="session")
def saved_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA."""
    return save_vlm(tmp_path_factory.mktemp("vlm") / "llava", "llava")


@pytest.fixture
def vlm_folder(saved_vlm: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(saved_vlm, tmp_path / "model")
    return tmp_path / "model"
