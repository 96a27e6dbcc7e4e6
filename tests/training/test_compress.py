"""Smaller models: closed forms and round trips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from tests.models import builders
from xvision.errors import ConfigError, ModelError
from xvision.models.checkpoint import save_model
from xvision.models.huggingface import HuggingFaceClassifier
from xvision.models.llm.classifier import preset
from xvision.models.open import load_model
from xvision.models.pruning import prune_weights, without_units
from xvision.models.quantised import linear_layers
from xvision.training.compress import How, compress, size

BODIES = ("tiny-qwen3", "tiny-gpt2", "tiny-bert", "tiny-llama", "tiny-gemma3")


def tiny(body: str = "tiny-qwen3") -> PreTrainedModel:
    return preset(body, image_size=16, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(preset("tiny-qwen3", image_size=16, seed=0), tmp_path / "model")
    return tmp_path / "model"


def pixels(side: int = 16) -> torch.Tensor:
    return torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(0))


def opened(path: Path) -> HuggingFaceClassifier:
    found = load_model(path)
    assert isinstance(found, HuggingFaceClassifier)
    return found


# pruning


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_magnitude_pruning_takes_exactly_the_smallest(amount: float) -> None:
    before, after = tiny(), tiny()
    prune_weights(after, amount)
    pairs = [(before.get_submodule(name).weight, part.weight) for name, part in linear_layers(after)]
    kept = torch.cat([old[new != 0].abs() for old, new in pairs])
    gone = torch.cat([old[new == 0].abs() for old, new in pairs])
    assert len(gone) == int(amount * (len(gone) + len(kept)))
    assert gone.max() <= kept.min()
    assert all(torch.equal(new[new != 0], old[new != 0]) for old, new in pairs)
    assert torch.equal(before.classifier.weight, after.classifier.weight)


@pytest.mark.parametrize("body", BODIES)
def test_units_that_do_nothing_are_the_first_to_go_and_nothing_changes(body: str) -> None:
    module = tiny(body)
    width = module.config.text_config.intermediate_size if body != "tiny-gpt2" else 4 * module.config.text_config.n_embd
    mute, unread = torch.arange(width) % 8 == 1, torch.arange(width) % 8 == 6
    with torch.no_grad():
        layers: list[tuple[str, Any]] = linear_layers(module)
        for name, part in layers:
            into = name.endswith(("gate_proj", "up_proj", "c_fc", "intermediate.dense"))
            out = name.endswith(("down_proj", "mlp.c_proj")) or (
                name.endswith("output.dense") and "attention" not in name
            )
            matrix = part.weight.t() if body == "tiny-gpt2" else part.weight
            if into:
                matrix[mute] = 0
                if part.bias is not None:
                    part.bias[mute] = 0
            if out:
                matrix[:, unread] = 0
    smaller = without_units(module, 0.25)
    counts = [sum(weights.numel() for weights in model.parameters()) for model in (module, smaller)]
    assert counts[1] < 0.95 * counts[0]
    image = pixels() * 2 - 1
    assert torch.allclose(smaller(image).logits, module(image).logits, atol=1e-6)


def test_structured_pruning_saves_what_arithmetic_says(folder: Path, tmp_path: Path) -> None:
    before, after = size(folder), size(compress(folder, "prune-structured", tmp_path / "out", amount=0.5))
    layers, width, hidden = 2, 64, 192
    assert before.parameters - after.parameters == layers * 3 * width * hidden // 2
    tokens = 4 + 1
    assert before.flops is not None
    assert after.flops is not None
    assert before.flops - after.flops == 2 * tokens * layers * 3 * width * hidden // 2
    assert before.bytes - after.bytes == pytest.approx(4 * (before.parameters - after.parameters), abs=500)
    assert opened(tmp_path / "out").module.config.text_config.intermediate_size == 96


@pytest.mark.parametrize("name", ["vit", "clip", "siglip"])
def test_vision_models_can_lose_units_too(name: str) -> None:
    module = builders.seeded(builders.VISION[name])
    smaller = without_units(module, 0.5)
    body = getattr(smaller.config, "vision_config", smaller.config)
    assert body.intermediate_size == 32
    assert torch.isfinite(smaller(builders.pixels()).logits).all()


def test_architectures_without_known_blocks_are_refused() -> None:
    with pytest.raises(ModelError, match="has no feed-forward block of a known kind: structured pruning needs"):
        without_units(builders.WITHOUT_MAP["resnet"](), 0.5)
    with pytest.raises(
        ModelError, match=r"has blocks of .* hidden units: structured pruning needs blocks of one width"
    ):
        without_units(_two_widths(), 0.5)
    with pytest.raises(ModelError, match="does not state the width 128 of its feed-forward blocks"):
        without_units(builders.VISION["dinov2"](), 0.5)
    with pytest.raises(ModelError, match="ResNetForImageClassification has no linear layer beside its head"):
        prune_weights(builders.WITHOUT_MAP["resnet"](), 0.5)


def _two_widths() -> PreTrainedModel:
    module = tiny("tiny-bert")
    layer = module.backbone.encoder.layer[0]
    layer.intermediate.dense, layer.output.dense = nn.Linear(64, 8), nn.Linear(8, 64)
    return module


# one model in, a smaller one out


def test_bfloat16_halves_the_file_and_reads_back_as_rounded_float32(folder: Path, tmp_path: Path) -> None:
    out = compress(folder, "bfloat16", tmp_path / "out")
    before, after = opened(folder).module.state_dict(), opened(out).module.state_dict()
    assert size(out).bytes == pytest.approx(size(folder).bytes / 2, rel=0.05)
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(out / "model.safetensors").values())
    for name, tensor in after.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name].bfloat16().float())


@pytest.mark.parametrize("how", ["int8", "int8-dynamic", "bfloat16", "prune-magnitude", "prune-structured"])
def test_every_folder_opens_and_answers_nearly_alike(folder: Path, tmp_path: Path, how: How) -> None:
    found = opened(compress(folder, how, tmp_path / "out", amount=0.05))
    original = opened(folder)
    gap = float((found.logits(pixels()) - original.logits(pixels())).abs().max())
    assert 0 < gap < 0.05
    assert found.preprocessing.input == original.preprocessing.input
    assert found.fingerprint != original.fingerprint
    again = opened(compress(folder, how, tmp_path / "out", amount=0.05))
    assert again.fingerprint == found.fingerprint


def test_pt2_repeats_the_logits(tmp_path: Path) -> None:
    module = preset("tiny-gpt2", image_size=16, stem="linear", seed=0)
    module.backbone.h = module.backbone.h[:1]
    module.config.text_config.n_layer = 1
    save_model(module, tmp_path / "model")
    out = compress(tmp_path / "model", "pt2", tmp_path / "small.pt2")
    assert torch.allclose(load_model(out).logits(pixels()), opened(tmp_path / "model").logits(pixels()), atol=1e-5)


def test_wrong_requests_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"how is 'int88'\. Did you mean 'int8'\?"):
        compress(folder, "int88", out)
    for amount in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match=f"amount is {amount}: give the share to prune, above 0 and below 1"):
            compress(folder, "prune-magnitude", out, amount=amount)
    with pytest.raises(ConfigError, match=r"give the file a name that ends in \.onnx"):
        compress(folder, "onnx", out)
    with pytest.raises(ConfigError, match="is the model itself: choose another folder"):
        compress(folder, "int8", folder)
    small = compress(folder, "int8", out)
    with pytest.raises(ModelError, match="already has 8-bit weights: give the folder it was made from"):
        compress(small, "bfloat16", tmp_path / "other")


def test_other_forms_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    table.write_text("id,prob:a,prob:b\nx,0.5,0.5\n")
    with pytest.raises(ModelError, match=r"model of another form \(predictions file\): give the Hugging Face folder"):
        compress(table, "int8", tmp_path / "out")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"thesis\.txt is no part of a checkpoint and would be lost"):
        compress(folder, "int8", precious)
    assert (precious / "thesis.txt").read_text() == "mine"


def test_a_model_that_reads_text_is_not_exported_without_it(tmp_path: Path) -> None:
    module = preset("tiny-qwen3", image_size=16, seed=0, text_tokens=4, texts=["old cough", "no fever"])
    save_model(module, tmp_path / "model")
    for how in ("onnx", "pt2"):
        with pytest.raises(ModelError, match="reads clinical text before the image"):
            compress(tmp_path / "model", how, tmp_path / f"small.{how}")
    found = opened(compress(tmp_path / "model", "int8", tmp_path / "small"))
    assert found.takes_text
    texts = ["old cough"] * 3
    gap = found.with_text(texts).logits(pixels()) - opened(tmp_path / "model").with_text(texts).logits(pixels())
    assert 0 < gap.abs().max() < 0.02
