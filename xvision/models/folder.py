"""A checkpoint folder is untrusted: its JSON is read as data, and whatever could run code or fetch more is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from xvision.errors import ModelError

MAX_JSON_BYTES = 16 * 2**20
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_RUNS_CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
# Each of these can name a kernel repository whose code is then downloaded and run.
_LOADS_CODE = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")
_INDEX = "model.safetensors.index.json"


def open_folder(path_or_id: str | Path) -> Path:
    """A local checkpoint folder, or the safetensors and JSON files of a hub id; ModelError when there is neither."""
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file: give the folder that holds config.json and model.safetensors.")
    if isinstance(path_or_id, Path) or str(path_or_id).count("/") != 1 or str(path_or_id).startswith((".", "/", "~")):
        raise ModelError(f"{path}: no such folder. Give a checkpoint folder or a hub id such as owner/name.")
    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
        first = str(problem).strip().splitlines()[0]
        raise ModelError(f"{path_or_id} is no folder here and cannot be fetched from the hub ({first}).") from problem


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as data, after every refusal that needs no model to be built."""
    for script in sorted(folder.rglob("*.py")):
        raise ModelError(f"{script} is Python code, which xvision never runs from a checkpoint: remove it.")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: give a folder written by save_pretrained.")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter without its base model: merge it and save the whole model.")
    config = read_json(folder / "config.json")
    for key, value in _entries(config):
        _refuse_key(folder, key, value)
    _check_weights(folder)
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ModelError when it is too large, too deep, not JSON or not an object."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path} has more than {MAX_JSON_BYTES // 2**20} MiB: it is no configuration, replace it.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{path} is not readable JSON ({problem}): save the model again.") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds a {type(data).__name__}, not a JSON object: save the model again.")
    return data


def _entries(data: object) -> Iterator[tuple[str, object]]:
    """Every key and value at any depth."""
    waiting = [data]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current.items()
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)


def _refuse_key(folder: Path, key: str, value: object) -> None:
    if key in _RUNS_CODE:
        raise ModelError(
            f"{folder / 'config.json'} has the key {key!r}, which asks to run code that comes with the checkpoint: "
            "only architectures built into transformers can be audited; remove the key if the model is one of them."
        )
    if key.startswith(_LOADS_CODE) and not (value is None or isinstance(value, bool)):
        raise ModelError(f"{folder / 'config.json'} has the key {key!r}, which can load foreign code: remove it.")
    if key == "transformers_weights":
        raise ModelError(f"{folder / 'config.json'} names its own weights file: call it model.safetensors instead.")
    if key == "quantization_config":
        raise ModelError(f"{folder / 'config.json'} is quantised: save the model with float32 weights to audit it.")


def _check_weights(folder: Path) -> None:
    """Safetensors only, all in this folder."""
    found = {path.name for path in folder.iterdir()}
    if _INDEX in found:
        shards = read_json(folder / _INDEX).get("weight_map")
        named = {str(name) for name in shards.values()} if isinstance(shards, dict) else {str(shards)}
        if missing := sorted(named - found):
            raise ModelError(f"{folder / _INDEX} names {missing[0]!r}, which is not in the folder: copy it there.")
    elif "model.safetensors" not in found:
        pickles = sorted(name for name in found if Path(name).suffix in _PICKLES)
        if pickles:
            raise ModelError(
                f"{folder / pickles[0]} is a pickle, which can run code when it is read: where you trust it, convert "
                "it with model.save_pretrained(folder), which writes model.safetensors."
            )
        raise ModelError(f"{folder} has no model.safetensors: save the model there with save_pretrained.")
