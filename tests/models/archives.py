"""Small networks, the archives they are exported to, and ways to alter these."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.builders import seeded, vit
from xvision.errors import ModelError
from xvision.models.huggingface import HuggingFaceClassifier, adapt
from xvision.models.preprocessing import Preprocessing
from xvision.models.programs.exported import ExportedClassifier, load_exported
from xvision.models.protocols import InputSpec

SMALL = Preprocessing(InputSpec(3, 16, 16, "bicubic"), 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16}


class Net(nn.Module):
    """A classifier of other people's: 1 × 8 × 8 images, logits for ``outputs`` classes."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(64, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(images).flatten(1))


def small_vit(**changes: Any) -> HuggingFaceClassifier:
    return adapt(seeded(lambda: vit(**{**TINY, **changes})), SMALL, source="here")


def save(module: nn.Module, path: Path, *, batch: int = 2, dim: Any = None, size: tuple[int, ...] = (1, 8, 8)) -> Path:
    program = torch.export.export(
        module.eval(), (torch.rand(batch, *size),), dynamic_shapes=({0: dim},) if dim else None
    )
    torch.export.save(program, path)
    return path


def named(path: Path, content: object = ("normal", "lesion")) -> Path:
    path.with_suffix(".classes.json").write_text(json.dumps(content))
    return path


def load(path: Path) -> ExportedClassifier:
    return load_exported(path, torch.device("cpu"))


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(path)


def altered(archive: Path, out: Path, **members: bytes | Callable[[Any], Any]) -> Path:
    """A copy in which members (dots stand for slashes, twice for once) are replaced, or their JSON is edited."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].split("/")[0]
        left = {name.replace("__", "/"): change for name, change in members.items()}
        for name in old.namelist():
            change = left.pop(name.partition("/")[2], None)
            content = old.read(name)
            if callable(change):
                document = json.loads(content)
                content = json.dumps(change(document) or document).encode()
            new.writestr(name, change if isinstance(change, bytes) else content)
        for name, change in left.items():
            new.writestr(f"{root}/{name}", change if isinstance(change, bytes) else b"")
    return named(out)


def program_with(archive: Path, out: Path, edit: Callable[[Any], Any]) -> Path:
    return altered(archive, out, **{"models__model.json": edit})


# --- ours, out and in -------------------------------------------------------------------------------------------------
