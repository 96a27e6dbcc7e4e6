from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    GPT2Config,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

from tests.models.builders import LANGUAGE_MODELS, PRESETS, edit_config
from xvision.errors import ModelError
from xvision.models.checkpoint import load_model, save_model
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import AttentionMode, LlmImageClassifierConfig, Readout, image_processor
from xvision.models.loading import quiet
from xvision.models.preprocessing import read_preprocessing

MODES: tuple[AttentionMode, ...] = ("causal", "bidirectional")
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def grey(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


def first_token(model: LlmImageClassifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images, output_hidden_states=True).hidden_states[-1][:, 0]


@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_saved_and_loaded_logits_are_equal_to_the_last_bit(name: str, attention: AttentionMode, tmp_path: Path) -> None:
    model = preset(name, attention=attention, seed=3)
    save_model(model, tmp_path / "model")
    with quiet():
        again = AutoModelForImageClassification.from_pretrained(tmp_path / "model", use_safetensors=True)
    with torch.no_grad():
        assert (again(grey()).logits - model(grey()).logits).abs().max() == 0.0
    assert again.config.text_config.is_causal == (attention == "causal")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_only_bidirectional_attention_sees_later_patches(
    name: str, attention: AttentionMode, implementation: str
) -> None:
    model = preset(name, attention=attention, stem="linear", seed=0)
    model.set_attn_implementation(implementation)
    images = grey(1)
    changed = images.clone()
    changed[..., 56:, 56:] = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    same = torch.allclose(first_token(model, images), first_token(model, changed), atol=1e-6)
    assert same == (attention == "causal")


@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_sdpa_and_eager_agree(name: str, attention: AttentionMode) -> None:
    model = preset(name, attention=attention, seed=0)
    found = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found.append(model(grey()).logits)
    assert (found[0] - found[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("attention", MODES)
def test_sliding_layers_see_their_window_and_full_layers_everything(
    attention: AttentionMode, implementation: str
) -> None:
    """A token outside the window of the only layer changes nothing; behind a full layer it does. Window 3 of 17 tokens."""
    for kind in ("sliding_attention", "full_attention"):
        text = type(LANGUAGE_MODELS["gemma3"])(
            **{**LANGUAGE_MODELS["gemma3"].to_dict(), "vocab_size": 1, "num_hidden_layers": 1, "layer_types": [kind]}
        )
        text.sliding_window = 3
        config = LlmImageClassifierConfig(text_config=text, image_size=32, attention=attention)
        model = LlmImageClassifier(config).eval()
        model.set_attn_implementation(implementation)
        tokens = torch.randn(1, 17, 32, generator=torch.Generator().manual_seed(0))
        moved = tokens.clone()
        moved[:, 8] += torch.randn(32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            states = [model.backbone(inputs_embeds=each).last_hidden_state[0] for each in (tokens, moved)]
        seen = (states[0] - states[1]).abs().amax(dim=1) > 1e-6
        later, both = range(8, 11), range(5, 12)  # transformers counts a token itself only in causal windows
        window = later if attention == "causal" else both
        whole = range(8, 17) if attention == "causal" else range(17)
        assert seen.nonzero().flatten().tolist() == list(window if kind == "sliding_attention" else whole)


@pytest.mark.parametrize("readout", ["last", "mean"])
def test_the_head_reads_what_the_readout_says(readout: Readout) -> None:
    model = preset("tiny-bert", readout=readout, seed=0)
    out = model(grey(), output_hidden_states=True)
    hidden = out.hidden_states[-1]
    assert hidden.shape[1] == 64 + (readout == "last")
    pooled = hidden[:, -1] if readout == "last" else hidden.mean(dim=1)
    torch.testing.assert_close(out.logits, model.classifier(model.cls_norm(pooled)))


def test_loss_is_the_mean_cross_entropy() -> None:
    model, labels = preset("tiny-qwen3", seed=0), torch.tensor([0, 1])
    out = model(grey(), labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))
    assert model.accepts_loss_kwargs is False


def test_positions_are_two_dimensional() -> None:
    model = preset("tiny-qwen3", seed=0)
    grid = model.positions(torch.zeros(1, 64, 64)).reshape(8, 8, 64)
    expected = model.positions.row.weight[3] + model.positions.column.weight[5]
    torch.testing.assert_close(grid[3, 5], expected)


def test_the_conv_stem_keeps_tokens_on_their_patches() -> None:
    """It sees less than one patch beyond its own: noise in one patch moves at most 3 × 3 tokens, its own the most."""
    images = grey(1)
    changed = images.clone()
    changed[..., 16:24, 24:32] = 0.0
    moved = torch.zeros(64)
    for seed in range(8):
        stem = preset("tiny-qwen3", seed=seed).stem
        with torch.no_grad():
            moved += (stem(images) - stem(changed)).abs().sum(dim=-1)[0]
    around = {8 * row + column for row in (1, 2, 3) for column in (2, 3, 4)}
    assert set(moved.nonzero().flatten().tolist()) <= around
    assert int(moved.argmax()) == 8 * 2 + 3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_tiny_and_leave_no_weight_unused(name: str) -> None:
    model = preset(name, seed=0)
    assert 130_000 < sum(weights.numel() for weights in model.parameters()) < 150_000
    assert model.backbone.get_input_embeddings().weight.shape == (1, 64)
    model(grey(), labels=torch.tensor([0, 1])).loss.backward()
    assert [key for key, weights in model.named_parameters() if weights.grad is None] == []
    assert {key for key, _ in model.named_parameters()} == set(model.state_dict())


def test_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first, drawn = preset("tiny-qwen3", seed=5), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    second = preset("tiny-qwen3", seed=5)
    other = preset("tiny-qwen3", seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


@torch.no_grad()
def test_new_weights_have_the_stated_scale() -> None:
    model = preset("tiny-qwen3", image_size=128, seed=0)
    positions = torch.cat((model.positions.row.weight, model.positions.column.weight))
    assert float(positions.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.classifier.weight.std()) == pytest.approx(0.02, rel=0.2)
    for layer in (part for part in model.stem.modules() if isinstance(part, nn.Conv2d)):
        assert float(layer.weight.std()) == pytest.approx(math.sqrt(2 / (16 * layer.in_channels)), rel=0.1)
        assert layer.bias.count_nonzero() == 0


def test_class_names_travel_with_the_model() -> None:
    config = preset("tiny-qwen3", classes=("clear", "effusion", "mass"), seed=0).config
    assert config.classes == ("clear", "effusion", "mass")
    assert config.label2id == {"clear": 0, "effusion": 1, "mass": 2}


@pytest.mark.parametrize("channels", [1, 3])
def test_processor_is_saved_and_does_what_its_numbers_say(channels: int, tmp_path: Path) -> None:
    model = preset("tiny-qwen3", channels=channels, seed=0)
    save_model(model, tmp_path / "model")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    found = AutoImageProcessor.from_pretrained(tmp_path / "model")(picture, return_tensors="pt")["pixel_values"]
    plain = np.asarray(picture.convert("L"))[None] if channels == 1 else np.moveaxis(np.asarray(picture), -1, 0)
    expected = read_preprocessing(tmp_path / "model", channels).normalise(torch.from_numpy(plain / 255.0)[None])
    torch.testing.assert_close(found, expected.float())


def test_processor_resizes_to_the_model(tmp_path: Path) -> None:
    processor = image_processor(preset("tiny-qwen3", image_size=32, seed=0).config)
    found = processor(Image.new("RGB", (100, 80)), return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 1, 32, 32)


BACKBONES: dict[str, PreTrainedConfig] = {
    **LANGUAGE_MODELS,
    "roberta": RobertaConfig(**TINY, vocab_size=300, max_position_embeddings=80),
}


def backbone_folder(config: PreTrainedConfig, folder: Path) -> Path:
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


def classifier(folder: Path, attention: AttentionMode = "causal", image_size: int = 64) -> LlmImageClassifier:
    return LlmImageClassifier.from_backbone(
        folder, image_size=image_size, patch_size=8, channels=1, classes=("a", "b"), attention=attention, seed=7
    )


@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", BACKBONES)
def test_from_backbone_keeps_the_text_weights(name: str, attention: AttentionMode, tmp_path: Path) -> None:
    folder = backbone_folder(BACKBONES[name], tmp_path / "text")
    model = classifier(folder, attention)
    with quiet():
        text = AutoModel.from_pretrained(folder).eval()
    kept = {key: value for key, value in text.state_dict().items() if "pooler" not in key}
    table = text.get_input_embeddings()
    words = next(key for key, value in kept.items() if value.data_ptr() == table.weight.data_ptr())
    del kept[words]
    with torch.no_grad():  # as the body reads them: Gemma scales its words
        mean_word = table(torch.arange(300)).mean(dim=0)
    own = model.backbone.state_dict()
    torch.testing.assert_close(own.pop(words)[0], mean_word)
    assert own.keys() == kept.keys()
    assert all(torch.equal(own[key], kept[key]) for key in kept)
    save_model(model, tmp_path / "saved")
    logits = load_model(tmp_path / "saved").logits((grey() * 0.1 + 0.5).clamp(0, 1))
    assert logits.shape == (2, 2)
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_from_backbone_runs_the_body_as_transformers_does(tmp_path: Path) -> None:
    folder = backbone_folder(BACKBONES["qwen3"], tmp_path / "text")
    model = classifier(folder)
    with quiet():
        text = AutoModel.from_pretrained(folder).eval()
    tokens = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = text(inputs_embeds=tokens).last_hidden_state
        torch.testing.assert_close(model.backbone(inputs_embeds=tokens).last_hidden_state, expected)


def test_from_backbone_refuses_what_it_cannot_build(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mpnet cannot be run with causal attention"):
        classifier(backbone_folder(MPNetConfig(**TINY, vocab_size=50), tmp_path / "mpnet"))
    picture = backbone_folder(ViTConfig(**TINY, image_size=16, patch_size=8), tmp_path / "vit")
    with pytest.raises(ModelError, match="ViTModel, which is no plain text model"):
        classifier(picture)
    short = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, n_positions=60, bos_token_id=0, eos_token_id=1)
    folder = backbone_folder(short, tmp_path / "short")
    with pytest.raises(ModelError, match="makes 65 tokens but the backbone has 60 positions"):
        classifier(folder)
    t5 = backbone_folder(T5Config(vocab_size=50, d_model=32, d_ff=32, num_layers=1, num_heads=4), tmp_path / "t5")
    with pytest.raises(ModelError, match="t5 is an encoder with a decoder"):
        classifier(t5)
    folder = backbone_folder(BACKBONES["qwen3"], tmp_path / "code")
    edit_config(folder, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ModelError, match="auto_map"):
        classifier(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 60}, "image_size 60 is not a multiple of patch_size 8"),
        ({"patch_size": 12, "image_size": 60}, "patch_size 12 must be a power of 2"),
        ({"stem": "cubic"}, "stem is 'cubic': choose one of conv, linear"),
        ({"classes": ("a", "a")}, "at least two different names"),
        ({"name": "tiny-qwen"}, "no preset 'tiny-qwen'. Did you mean 'tiny-qwen3'?"),
    ],
)
def test_presets_refuse_impossible_shapes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        preset(**{"name": "tiny-qwen3", "seed": 0, **changes})


def test_normalisation_needs_a_number_for_each_channel() -> None:
    text = preset("tiny-qwen3", seed=0).config.text_config
    with pytest.raises(ModelError, match=r"image_mean is \[0.5\]: give 3 numbers"):
        LlmImageClassifierConfig(text_config=text, num_channels=3, image_mean=[0.5])
    with pytest.raises(ModelError, match=r"image_std is \['a'\]: give 1 numbers"):
        LlmImageClassifierConfig(text_config=text, image_std=["a"])


def test_a_configuration_needs_a_language_model() -> None:
    with pytest.raises(ModelError, match="needs text_config"):
        LlmImageClassifierConfig()
