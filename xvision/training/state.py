"""The state of a training on disk: everything that decides its later steps, so that a killed run goes on as if it had not been.

Random numbers are functions of the step and the example, so none are stored. One safetensors file, written beside its final
name, synced and renamed; its header holds the numbers that are no tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from xvision.errors import ConfigError, RunError

Tensors = dict[str, torch.Tensor]


def folder_of(out: Path) -> Path:
    """Where the state of a training into ``out`` lies until it is finished."""
    return out.with_name(f"{out.name}.resume")


def key_of(parts: Mapping[str, Any]) -> str:
    """Equal keys mean that a state may be continued."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def save_state(out: Path, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
    """The whole state or the one before; RunError when the disk refuses it."""
    path = folder_of(out) / "state.safetensors"
    temporary = path.with_name(".state.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().contiguous() for name, value in tensors.items()},
            temporary,
            {"numbers": json.dumps(numbers)},
        )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as problem:
        with suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"{path}: cannot be written ({problem}). The last good checkpoint stays in {out}; free space and continue with --resume."
        ) from None


def read_state(out: Path, key: str, device: torch.device) -> tuple[Tensors, dict[str, Any]] | None:
    """The state of an interrupted training into ``out``, or None; ConfigError when it belongs to another plan, model or data."""
    path = folder_of(out) / "state.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            numbers = json.loads(file.metadata()["numbers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise RunError(f"{path}: cannot be read ({problem}). Remove {path.parent} to start over.") from None
    if numbers.get("key") != key:
        raise ConfigError(
            f"{path.parent} holds an interrupted training of another plan, model or data: restore them, or remove that folder "
            "to start over."
        )
    return tensors, numbers


def refuse_interrupted(out: Path) -> None:
    """ConfigError when a training into ``out`` was interrupted: starting over would lose it without asking."""
    if (folder_of(out) / "state.safetensors").exists():
        raise ConfigError(
            f"{folder_of(out)} holds an interrupted training: continue it with --resume, or remove that folder to start over."
        )


def forget(out: Path) -> None:
    """The state of a finished training."""
    shutil.rmtree(folder_of(out), ignore_errors=True)


def restore_weights(model: nn.Module, tensors: Tensors, expected: frozenset[str]) -> None:
    """Takes back the weights that training moves; the frozen ones are as the model was built."""
    known = model.state_dict()
    if tensors.keys() != expected & known.keys():
        raise ConfigError("the interrupted training moved other weights than this plan does: start over.")
    model.load_state_dict(tensors, strict=False)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's memory by number of the weight."""
    found = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, memory in found.items()
        for name, value in memory.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Takes back what ``optimizer_tensors`` gave."""
    memory: dict[int, Tensors] = {}
    for name, value in tensors.items():
        number, _, what = name.partition(".")
        memory.setdefault(int(number), {})[what] = value
    optimizer.load_state_dict({"state": memory, "param_groups": optimizer.state_dict()["param_groups"]})


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors with a prefix put before their names."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def within(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Those whose names have the prefix, without it."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}
