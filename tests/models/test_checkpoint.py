from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from tests.models.builders import VISION, edit_config, pixels, save_folder, seeded, vit
from xvision.errors import ModelError, RunError
from xvision.models.checkpoint import load_model, save_model
from xvision.models.llm.classifier import preset
from xvision.models.loading import quiet
from xvision.models.protocols import AttentionClassifier, Classifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "model", seeded(vit))


class Canary:
    """Unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def refused(folder: Path | str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("name", VISION)
def test_a_folder_of_a_vision_transformer_loads_with_attention(name: str, tmp_path: Path) -> None:
    module = seeded(VISION[name])
    model = load_model(save_folder(tmp_path / "model", module), device="cpu")
    assert isinstance(model, AttentionClassifier)
    assert model.attention(pixels()).weights
    with torch.no_grad():
        expected = module(pixel_values=model.preprocessing.normalise(pixels())).logits
    assert (model.logits(pixels()) - expected).abs().max() == 0.0
    assert model.description["source"] == str(tmp_path / "model")


def test_half_precision_is_loaded_as_float32(tmp_path: Path) -> None:
    model = load_model(save_folder(tmp_path / "half", seeded(vit).half()), device="cpu")
    assert {weights.dtype for weights in model.module.parameters()} == {torch.float32}
    assert model.logits(pixels()).dtype == torch.float32


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_a_pickle_is_refused_and_never_run(folder: Path, suffix: str, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    weights = folder / f"pytorch_model{suffix}"
    weights.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    refused(folder, f"pytorch_model\\{suffix} is a pickle.*model.save_pretrained")
    refused(weights, f"pytorch_model\\{suffix} is a pickle.*convert it")
    assert not (tmp_path / "canary").exists()
    pickle.loads(weights.read_bytes())  # noqa: S301  # shows that the canary works
    assert (tmp_path / "canary").exists()


def test_a_pickle_beside_safetensors_is_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "training_args.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert isinstance(load_model(folder, device="cpu"), Classifier)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForImageClassification": "evil.Model"}},
        {"nested": {"deeper": [{"auto_map": {}}]}},
        {"trust_remote_code": True},
        {"vision_config": {"trust_remote_code": False}},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"text_config": {"_attn_implementation_internal": "evil/kernel"}},
        {"attn_implementation": {"": "evil/kernel"}},
        {"_experts_implementation": "evil/kernel"},
    ],
)
def test_keys_that_run_code_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_config(folder, **changes)
    refused(folder, r"config\.json has the key '.*(auto_map|trust_remote_code|_implementation\w*)'.*remove")


def test_python_files_are_refused(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "modeling.py").write_text("raise SystemExit")
    refused(folder, r"modeling\.py is Python code, which xvision never runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "has model_type None, which transformers does not know"),
        ({"model_type": "vitt"}, "has model_type 'vitt'.*Did you mean 'vit'"),
        ({"model_type": "qwen3"}, "holds a qwen3 model, which is no image classifier"),
        ({"quantization_config": {}}, "is quantised"),
        ({"transformers_weights": "other.safetensors"}, "names its own weights file"),
        ({"id2label": {"0": "a", "2": "b"}}, "number the classes 0, 1, 2"),
        ({"label2id": {"lesion": 0, "normal": 1}}, "calls output 0 'normal' but label2id gives that name to output 1"),
        ({"num_attention_heads": 0}, r"cannot be loaded \(integer division or modulo by zero\)"),
        ({"num_attention_heads": True}, "cannot be loaded .*expected int, got bool"),
        ({"image_size": [64]}, "cannot be loaded"),
        ({"hidden_act": "nonsense"}, "cannot be loaded"),
    ],
)
def test_contradictory_configurations_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    refused(folder, message)


def test_missing_weights_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.bias"], weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, r"lacks 2 weights of ViTForImageClassification \(classifier.bias, classifier.weight\)")


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    refused(folder, r"mlp.* is \(64, 32\), not \(48, 32\).* and 2 more\): they would be random")


def test_a_head_that_does_not_match_the_labels_is_named(folder: Path) -> None:
    edit_config(folder, id2label={"0": "a", "1": "b", "2": "c"}, label2id=None)
    refused(folder, "the head has 2 outputs but config.json names 3 classes.*correct id2label")


def test_generic_labels_are_allowed_but_told(folder: Path) -> None:
    edit_config(folder, id2label=None, label2id=None)
    model = load_model(folder, device="cpu")
    assert model.classes == ("LABEL_0", "LABEL_1")
    assert "the classes have no names" in str(model.description["notes"])


def test_unused_weights_are_told(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"vit.pooler.dense.bias": torch.zeros(32)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "1 weights of the folder are not part of the model" in str(load_model(folder, device="cpu").description)


def test_damaged_files_are_refused(folder: Path) -> None:
    good = (folder / "model.safetensors").read_bytes()
    for damage in (good[:-100], b"\xff" * 64, b""):
        (folder / "model.safetensors").write_bytes(damage)
        refused(folder, "cannot be loaded")
    for text, message in (("{", "not readable JSON"), ("[" * 100_000, "not readable JSON"), ("[]", "holds a list")):
        (folder / "config.json").write_text(text)
        refused(folder, message)
    with (folder / "config.json").open("wb") as file:
        file.truncate(17 * 2**20)
    refused(folder, "more than 16 MiB")


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    refused(folder, r"has no preprocessor_config\.json")
    (folder / "model.safetensors").unlink()
    refused(folder, r"has no model\.safetensors: save the model there")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "is an adapter without its base model")
    (folder / "config.json").unlink()
    refused(folder, r"has no config\.json")
    refused(tmp_path / "absent", "no such folder")
    refused("./absent", "no such folder")


def test_shards_outside_the_folder_are_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refused(folder, r"names '\.\./model\.safetensors', which is not in the folder")


def test_a_file_is_no_folder(folder: Path) -> None:
    refused(folder / "config.json", "is a file: give the folder")


def test_devices(folder: Path) -> None:
    assert load_model(folder).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="device 'tpu9' is unknown"):
        load_model(folder, device="tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="has no CUDA device"):
            load_model(folder, device="cuda")


def test_a_local_folder_opens_no_connection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert isinstance(load_model(folder, device="cpu"), Classifier)


def test_hub_ids_are_read_from_the_cache_with_the_same_refusals(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "models--clinic--chest"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    folder.rename(cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model("clinic/chest", device="cpu").description["source"] == "clinic/chest"
    edit_config(cache / "snapshots" / ("0" * 40), auto_map={"AutoConfig": "evil.Config"})
    refused("clinic/chest", "auto_map")
    refused("clinic/absent", "clinic/absent is no folder here and cannot be fetched from the hub")


def test_preprocessing_that_the_model_was_not_trained_with_is_refused(tmp_path: Path) -> None:
    save_model(preset("tiny-qwen3", seed=0), tmp_path / "model")
    edit_config(tmp_path / "model", "preprocessor_config.json", image_mean=[0.45])
    refused(tmp_path / "model", r"mean \(0\.45,\).* is not what config\.json was trained with .*mean \(0\.5,\)")


def test_a_filter_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    save_model(preset("tiny-qwen3", seed=0), tmp_path / "model")
    for value in (9, {"a": 1}):
        edit_config(tmp_path / "model", resample=value)
        refused(tmp_path / "model", "resample is .*: choose one of")


def test_saving_replaces_an_earlier_checkpoint_and_keeps_what_it_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    for seed in (0, 1):
        save_model(preset("tiny-qwen3", seed=seed), folder, keep=("metrics.jsonl",))
        (folder / "metrics.jsonl").write_text(f"seed {seed}") if seed == 0 else None
    expected = load_file(folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(preset("tiny-qwen3", seed=1).classifier.weight, expected)
    assert (folder / "metrics.jsonl").read_text() == "seed 0"
    assert list(folder.parent.iterdir()) == [folder]


def test_saving_loses_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("work of years")
    with pytest.raises(ModelError, match=r"thesis\.docx is no part of a checkpoint and would be lost"):
        save_model(preset("tiny-qwen3", seed=0), tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        save_model(preset("tiny-qwen3", seed=0), tmp_path / "thesis.docx")
    assert (tmp_path / "thesis.docx").read_text() == "work of years"


def test_a_failed_save_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    save_model(preset("tiny-qwen3", seed=0), folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"No space left.*what was there stays"):
        save_model(preset("tiny-qwen3", seed=1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_text_model_is_no_classifier(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, vocab_size=9)
    with quiet():
        BertModel(config).save_pretrained(tmp_path)
    refused(tmp_path, "holds a bert model, which is no image classifier")


def test_torchvision_and_timm_are_never_imported(folder: Path) -> None:
    script = (
        "import sys; from xvision.models.checkpoint import load_model; import xvision.training.loop;"
        f"load_model({str(folder)!r}, device='cpu'); print(sorted({{'torchvision', 'timm'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
