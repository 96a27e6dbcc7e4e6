"""Checkpoint folders written whole or not at all, without losing what else is in the folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from xvision.errors import ModelError, RunError
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.llm.config import image_processor
from xvision.models.loading import quiet
from xvision.models.open import load_model

__all__ = ["load_model", "refuse_foreign_files", "save_model"]

_PARTS = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    "metrics.jsonl",
    "run.json",
    "evaluation.json",
    "tokenizer.json",
)


def save_model(module: LlmImageClassifier, folder: Path, *, keep: tuple[str, ...] = ()) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json; the folder is the old or the new one.

    Everything is written and synced beside the folder, then renamed. keep: files of the old folder that move along.
    Raises ModelError when the folder holds anything but a checkpoint, because it would be lost, and RunError when the
    disk refuses a write; the old checkpoint then stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    refuse_foreign_files(folder, keep)
    staging, old = (folder.parent / f".{folder.name}.{os.getpid()}.{kind}" for kind in ("new", "old"))
    try:
        staging.mkdir()
        with quiet():
            module.save_pretrained(staging)
            image_processor(module.config).save_pretrained(staging)
        for name in keep:
            if (folder / name).is_file():
                shutil.copy2(folder / name, staging / name)
        _sync(*staging.iterdir(), staging)
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as problem:
        raise RunError(
            f"{folder}: the model cannot be written ({problem}). Free space or choose another folder; what was there stays."
        ) from None
    finally:
        recover(folder)


def recover(folder: Path) -> None:
    """Puts back the checkpoint that a kill between two renames left beside its folder, and removes unfinished ones."""
    for unfinished in folder.parent.glob(f".{folder.name}.*.new"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in sorted(folder.parent.glob(f".{folder.name}.*.old")):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def refuse_foreign_files(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """ModelError when saving a model in ``folder`` would lose anything but an earlier checkpoint."""
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file: give a folder to save the model in.")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.is_dir() or not (path.name in (*_PARTS, *keep) or path.suffix in (".safetensors", ".tmp")):
            raise ModelError(f"{path} is no part of a checkpoint and would be lost: save the model in another folder.")


def _sync(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
