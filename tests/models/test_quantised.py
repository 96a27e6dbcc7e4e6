"""8-bit weights: rounding within its bound, the same bytes back, and gradients only where they are true."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import builders
from xvision.errors import ModelError
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import image_processor
from xvision.models.open import load_model
from xvision.models.protocols import AttentionClassifier
from xvision.models.quantised import Int8Linear, QuantisedKind, linear_layers, quantise, save_quantised

BODIES = ("tiny-qwen3", "tiny-gpt2", "tiny-bert")
KINDS: tuple[QuantisedKind, ...] = ("int8", "int8-dynamic")


def tiny(body: str = "tiny-qwen3") -> LlmImageClassifier:
    return preset(body, image_size=16, seed=0)


def classifier(module: Any) -> HuggingFaceClassifier:
    return adapt(module, preprocessing_of(module.config), source="memory")


def pixels(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, module: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_quantised(module, folder)
    image_processor(module.config).save_pretrained(folder)
    return folder


def rounded(module: Any) -> dict[str, Int8Linear]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Int8Linear)}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back_bit_by_bit(tmp_path: Path, body: str, kind: QuantisedKind) -> None:
    module = quantise(tiny(body), kind)
    found = load_model(saved(tmp_path / "model", module))
    assert isinstance(found, HuggingFaceClassifier)
    assert torch.equal(found.logits(pixels()), classifier(module).logits(pixels()))
    assert found.fingerprint == classifier(module).fingerprint
    assert {name: part.weight.dtype for name, part in rounded(found.module).items()} == dict.fromkeys(
        rounded(module), torch.int8
    )
    again = saved(tmp_path / "again", found.module)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("body", BODIES)
def test_every_weight_is_within_half_a_step_and_the_head_is_untouched(body: str) -> None:
    before, after = tiny(body), quantise(tiny(body), "int8")
    layers = dict(linear_layers(before))
    assert set(rounded(after)) == set(layers)
    assert len(layers) >= 8
    for name, part in rounded(after).items():
        weight = layers[name].weight if body != "tiny-gpt2" else layers[name].weight.t()
        assert ((part.weight * part.scale - weight).abs() <= part.scale / 2 * (1 + 1e-4)).all()
        assert (part.weight.int().abs().amax(dim=1) >= 127).all()
    assert torch.equal(before.classifier.weight, after.classifier.weight)
    assert after.config.quantised == "int8"


def test_8_bit_weights_act_as_the_numbers_they_stand_for() -> None:
    """Logits and gradients are those of a float32 network with the rounded weights put back."""
    module = quantise(tiny(), "int8")
    plain = tiny()
    for name, part in rounded(module).items():
        plain.get_submodule(name).weight.data = part.weight * part.scale
    results = []
    for model in (classifier(module), classifier(plain)):
        image = pixels().requires_grad_()
        logits = model.logits(image)
        logits[:, 1].sum().backward()
        results.append((logits.detach(), image.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)
    assert results[0][1].abs().sum() > 0


def test_rounded_inputs_are_close_but_give_no_gradients(tmp_path: Path) -> None:
    found = load_model(saved(tmp_path / "model", quantise(tiny(), "int8-dynamic")))
    assert found.access == "black-box"
    assert not isinstance(found, AttentionClassifier)
    assert "8-bit weights (int8-dynamic)" in str(found.description["notes"])
    gap = (found.logits(pixels()) - classifier(tiny()).logits(pixels())).abs().max()
    assert 0 < gap < 0.02


def test_8_bit_weights_keep_attention_embeddings_and_the_control_with_shuffled_weights(tmp_path: Path) -> None:
    found = load_model(saved(tmp_path / "model", quantise(tiny(), "int8")))
    assert isinstance(found, HuggingFaceClassifier)
    assert isinstance(found, AttentionClassifier)
    assert found.access == "white-box"
    assert found.attention(pixels()).weights[0].shape == (3, 4, 5, 5)
    assert found.embed(pixels()).shape == (3, 64)
    twin = found.randomised(1)
    assert not torch.allclose(twin.logits(pixels()), found.logits(pixels()), atol=1e-3)
    assert all(part.weight.dtype == torch.int8 for part in rounded(twin.module).values())


def test_other_architectures_too(tmp_path: Path) -> None:
    module = builders.seeded(builders.vit)
    before = copy.deepcopy(module)
    folder = tmp_path / "model"
    folder.mkdir()
    save_quantised(quantise(module, "int8"), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(builders.PROCESSOR))
    found = load_model(folder)
    original = HuggingFaceClassifier(before, builders.RGB, source="memory")
    gap = (found.logits(builders.pixels()) - original.logits(builders.pixels())).abs().max()
    assert 0 < gap < 0.05


def test_nothing_to_round_is_said() -> None:
    with pytest.raises(ModelError, match="ResNetForImageClassification has no linear layer beside its head"):
        quantise(builders.WITHOUT_MAP["resnet"](), "int8")


def broken(folder: Path, words: str, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    state = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    with pytest.raises(ModelError, match=words):
        load_model(folder)


LAYER = "backbone.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("scale", lambda _: None, "fits no linear layer with a scale"),
        ("weight", lambda tensor: tensor[:10].clone(), "fits no linear layer with a scale"),
        ("weight", lambda tensor: tensor.float(), "cannot be loaded as int8"),
        ("scale", lambda tensor: tensor * torch.nan, f"{LAYER}.scale is not finite"),
        ("scale", lambda tensor: tensor.half(), f"{LAYER}.scale is stored as torch.float16"),
    ],
)
def test_damaged_weights_are_refused(tmp_path: Path, name: str, change: Any, words: str) -> None:
    folder = saved(tmp_path / "model", quantise(tiny(), "int8"))
    tensor = load_file(folder / "model.safetensors")[f"{LAYER}.{name}"]
    broken(folder, words, **{f"{LAYER}.{name}": change(tensor)})


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", quantise(tiny(), "int8"))
    builders.edit_config(folder, quantised="int3")
    with pytest.raises(ModelError, match="quantised is 'int3'; known are int8, int8-dynamic"):
        load_model(folder)
