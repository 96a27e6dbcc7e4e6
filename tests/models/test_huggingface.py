from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from tests.models.builders import PRESETS, RGB, VISION, WITHOUT_MAP, pixels, save_folder, seeded, vit
from xvision.errors import ModelError
from xvision.models.checkpoint import load_model, save_model
from xvision.models.huggingface import (
    HuggingFaceAttentionClassifier,
    HuggingFaceClassifier,
    adapt,
    preprocessing_of,
)
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import LlmImageClassifierConfig
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import AttentionClassifier, Classifier, EmbeddingClassifier, InputSpec
from xvision.models.tokens import Layout, layout_of, token_map

LANGUAGE = [
    (name, attention, readout)
    for name in PRESETS
    for attention in ("causal", "bidirectional")
    for readout in ("last", "mean")
]


def language_model(name: str, attention: str, readout: str) -> PreTrainedModel:
    return preset(name, channels=3, attention=attention, readout=readout, stem="linear", seed=0)


ALL = {**VISION, **{"/".join(key): lambda key=key: language_model(*key) for key in LANGUAGE}}


def attentive(name: str) -> HuggingFaceAttentionClassifier:
    found = adapt(seeded(ALL[name]), RGB, source="memory")
    assert isinstance(found, HuggingFaceAttentionClassifier)
    return found


def implementations(module: PreTrainedModel) -> list[str]:
    return [part.config._attn_implementation for part in module.modules() if isinstance(part, PreTrainedModel)]


@pytest.mark.parametrize("name", ALL)
def test_attention_is_a_distribution_in_the_graph(name: str) -> None:
    model = attentive(name)
    before = implementations(model.module)
    found = model.attention(pixels())
    count = len(found.tokens.names)
    assert len(found.weights) == 2
    for layer in found.weights:
        assert layer.shape == (2, 4, count, count)
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones(2, 4, count), atol=1e-5, rtol=0)
        assert layer[..., torch.from_numpy(~found.tokens.allowed)].count_nonzero() == 0
    gradients = torch.autograd.grad(found.logits[:, 1].sum(), found.weights)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(weights.grad is None for weights in model.module.parameters())
    assert (found.logits - model.logits(pixels())).abs().max() <= 1e-5
    assert implementations(model.module) == before


@pytest.mark.parametrize("name", ALL)
def test_the_head_reads_exactly_the_readout_tokens(name: str) -> None:
    """The derivative of the logits by the body's last states is not zero where, and only where, readout is not."""
    model = attentive(name)
    tokens = model.attention(pixels(1)).tokens
    model.module.requires_grad_(True)
    states: list[torch.Tensor] = []
    body = next(part for part in model.module.children() if isinstance(part, PreTrainedModel))
    hook = body.register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state))
    logits = model.logits(pixels(1))
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, 1], states[0])
    np.testing.assert_array_equal(gradient[0].abs().sum(dim=-1).numpy() > 0, tokens.readout > 0)
    assert tokens.readout.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ALL)
def test_a_patch_changes_its_own_token_first(name: str) -> None:
    """Closed form of the boxes: noise inside one box moves only that token of the body's input."""
    model = attentive(name)
    tokens = model.attention(pixels(1)).tokens
    which = 19
    left, top, right, bottom = tokens.boxes[which]
    changed = pixels(1).clone()
    changed[..., top:bottom, left:right] = 0.0
    seen: list[torch.Tensor] = []
    body = next(part for part in model.module.modules() if type(part).__name__.endswith(("Embeddings", "PatchStem")))
    hook = body.register_forward_hook(lambda _, __, output: seen.append(output.detach()[0]))
    for image in (pixels(1), changed):
        model.logits(image)
    hook.remove()
    moved = (seen[0] - seen[1]).abs().sum(dim=-1).numpy()
    offset = 0 if isinstance(model.module, LlmImageClassifier) else int(tokens.image[0])
    assert int(moved.argmax()) - offset == which


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), high=st.integers(1, 5), wide=st.integers(1, 5))
def test_boxes_tile_the_image(rows: int, columns: int, high: int, wide: int) -> None:
    tokens = token_map(Layout(("cls", "register"), rows, columns, (high, wide), (), "cls"))
    covered = np.zeros((rows * high, columns * wide), dtype=int)
    for left, top, right, bottom in tokens.boxes:
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert [tokens.names[index] for index in tokens.image] == ["image"] * (rows * columns)


def test_token_map_of_registers() -> None:
    tokens = attentive("dinov2-registers").attention(pixels(1)).tokens
    assert tokens.names[:6] == ("cls", "register", "register", "register", "register", "image")
    assert len(tokens.names) == 69
    assert tokens.readout[0] == 0.5
    assert tokens.readout[1:5].sum() == 0.0
    np.testing.assert_allclose(tokens.readout[5:], 0.5 / 64)
    np.testing.assert_array_equal(
        tokens.boxes[[0, 1, 8, 63]], [[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [56, 56, 64, 64]]
    )


def test_token_map_of_a_causal_language_model() -> None:
    tokens = attentive("tiny-qwen3/causal/last").attention(pixels(1)).tokens
    assert tokens.names[-1] == "readout"
    assert tokens.readout.tolist() == [0.0] * 64 + [1.0]
    np.testing.assert_array_equal(tokens.allowed, np.tril(np.ones((65, 65), dtype=bool)))


@pytest.mark.parametrize("name", WITHOUT_MAP)
def test_windowed_and_convolutional_models_have_no_attention(name: str) -> None:
    model = adapt(seeded(WITHOUT_MAP[name]), RGB, source="memory")
    assert isinstance(model, Classifier)
    assert isinstance(model, EmbeddingClassifier)
    assert not isinstance(model, AttentionClassifier)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "qwen3", "layer_types": ["full_attention", "full_attention"]}, True),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}, True),
        (
            {
                "model_type": "qwen3",
                "layer_types": ["sliding_attention", "full_attention"],
                "sliding_window": 16,
                "use_sliding_window": True,
            },
            False,
        ),
        ({"model_type": "mistral", "sliding_window": 16}, False),
        ({"model_type": "mistral", "sliding_window": 65}, True),
        ({"model_type": "mamba"}, False),
    ],
)
def test_language_models_with_windows_or_without_attention_have_no_map(
    changes: dict[str, object], expected: bool
) -> None:
    text = AutoConfig.for_model(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
           "intermediate_size": 32, "vocab_size": 5, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **changes}
    )  # fmt: skip
    module = LlmImageClassifier(LlmImageClassifierConfig(text_config=text, id2label={0: "a", 1: "b"}))
    assert (layout_of(module, InputSpec(1, 64, 64)) is not None) == expected


def test_attention_is_eager_only_while_it_is_read() -> None:
    model = attentive("tiny-qwen3/causal/last")
    before = implementations(model.module)
    with pytest.raises(ModelError, match=r"shape \(2, 1, 64, 64\); this model takes \(B, 3, 64, 64\)"):
        model.attention(pixels(channels=1))
    assert implementations(model.module) == before == ["sdpa", "sdpa"]


def test_attention_that_contradicts_the_configuration_is_refused() -> None:
    module = preset("tiny-bert", channels=3, attention="bidirectional", seed=0)
    layout = layout_of(module, RGB.input)
    assert layout is not None
    causal = replace(layout, causal=True)
    with pytest.raises(ModelError, match="attends to later tokens"):
        HuggingFaceAttentionClassifier(module, RGB, causal, source="memory").attention(pixels())
    fewer = replace(causal, after=())
    with pytest.raises(ModelError, match=r"attends over \(65, 65\) tokens where its configuration means 64"):
        HuggingFaceAttentionClassifier(module, RGB, fewer, source="memory").attention(pixels())
    module.config.text_config.num_hidden_layers = 3
    with pytest.raises(ModelError, match="attention for 2 of 3 layers"):
        HuggingFaceAttentionClassifier(module, RGB, causal, source="memory").attention(pixels())


@pytest.mark.parametrize("name", [*ALL, *WITHOUT_MAP])
def test_embedding_is_what_the_head_reads(name: str) -> None:
    model = adapt(seeded({**ALL, **WITHOUT_MAP}[name]), RGB, source="memory")
    embedding = model.embed(pixels())
    head = [part for part in model.module.classifier.modules() if isinstance(part, nn.Linear)][-1]
    assert embedding.shape == (2, head.in_features)
    torch.testing.assert_close(head(embedding), model.logits(pixels()))


def test_embedding_of_a_deeper_head_is_what_its_last_layer_reads() -> None:
    module = seeded(vit)
    module.classifier = nn.Sequential(nn.Linear(32, 8), nn.GELU(), nn.Linear(8, 2))
    model = adapt(module, RGB, source="memory")
    assert model.embed(pixels()).shape == (2, 8)
    module.classifier = nn.Sequential(nn.Conv1d(1, 2, 32), nn.Flatten(1))
    with pytest.raises(ModelError, match="ViTForImageClassification has no linear head named classifier"):
        model.embed(pixels())


def test_normalisation_is_inside(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "vit", seeded(vit))
    model = load_model(folder, device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    processed = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
        expected = seeded(vit)(**processed).logits
    inside = torch.from_numpy(np.moveaxis(picture, -1, 0).astype(np.float32) / 255)[None]
    torch.testing.assert_close(model.logits(inside), expected)


def test_pixel_gradients_are_finite_and_weights_stay_untouched() -> None:
    for name in ("tiny-qwen3/causal/last", "vit"):
        model, images = attentive(name), pixels().requires_grad_()
        model.logits(images)[:, 1].sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert images.grad.abs().sum() > 0
        assert all(weights.grad is None for weights in model.module.parameters())


def test_one_output_becomes_two_logits() -> None:
    module = seeded(lambda: vit(id2label={0: "lesion"}, label2id={"lesion": 0}))
    model = adapt(module, RGB, source="memory")
    logits = model.logits(pixels())
    assert model.classes == ("not lesion", "lesion")
    assert model.task == "binary"
    with torch.no_grad():
        z = module(pixel_values=RGB.normalise(pixels())).logits
    torch.testing.assert_close(logits, torch.cat((torch.zeros(2, 1), z), dim=1))
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1:], z.sigmoid())


def test_one_output_may_have_two_names() -> None:
    module = seeded(lambda: vit(id2label={0: "lesion"}, label2id={"lesion": 0}))
    module.config.id2label = {0: "normal", 1: "lesion"}
    assert adapt(module, RGB, source="memory").classes == ("normal", "lesion")


def test_task_and_description() -> None:
    three = {0: "clear", 1: "mass", 2: "effusion"}
    model = adapt(vit(id2label=three, label2id={name: index for index, name in three.items()}), RGB, source="here")
    assert model.task == "multiclass"
    assert model.description == {
        "architecture": "ViTForImageClassification",
        "backbone": "vit",
        "input": "3 × 64 × 64",
        "layers": 2,
        "parameters": sum(weights.numel() for weights in model.module.parameters()),
        "source": "here",
    }
    generic = adapt(seeded(VISION["deit"]), replace(RGB, notes=("cropped",)), source="here", notes=("1 unused",))
    assert generic.description["notes"] == (
        "cropped; 1 unused; the classes have no names (LABEL_0, LABEL_1): their meaning is assumed"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "its output is no logit"),
        ({"image_size": 32}, "does not take images of 3 × 64 × 64 as preprocessor_config.json says"),
        ({"id2label": {0: "a", 1: "a"}}, r"2 outputs but config.json names the classes \['a', 'a'\]: correct id2label"),
    ],
)
def test_models_that_cannot_be_audited_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        adapt(vit(**changes), RGB, source="memory")


def test_multi_label_models_keep_one_logit_for_each_finding() -> None:
    three = {0: "clear", 1: "mass", 2: "effusion"}
    module = seeded(lambda: vit(id2label=three, label2id=None, problem_type="multi_label_classification"))
    model = adapt(module, RGB, source="memory")
    assert model.task == "multilabel"
    assert model.classes == ("clear", "mass", "effusion")
    with torch.no_grad():
        torch.testing.assert_close(model.logits(pixels()), module(pixel_values=RGB.normalise(pixels())).logits)


def test_weights_that_are_not_finite_are_refused() -> None:
    module = vit()
    nn.init.constant_(module.classifier.weight, torch.nan)
    with pytest.raises(ModelError, match="not finite for a grey image"):
        adapt(module, RGB, source="memory")


def fingerprint(
    changes: dict[str, object] | None = None, preprocessing: Preprocessing = RGB, nudge: float = 0.0
) -> str:
    module = seeded(lambda: vit(**(changes or {})))
    with torch.no_grad():
        module.classifier.bias[1] += nudge
    return HuggingFaceClassifier(module, preprocessing, source="memory").fingerprint


def test_fingerprint_follows_what_changes_the_outputs() -> None:
    swapped = {"id2label": {0: "lesion", 1: "normal"}, "label2id": {"lesion": 0, "normal": 1}}
    prints = [
        fingerprint(),
        fingerprint(nudge=1e-6),
        fingerprint(swapped),
        fingerprint(preprocessing=replace(RGB, mean=(0.5, 0.4, 0.31))),
        fingerprint(preprocessing=replace(RGB, input=replace(RGB.input, resample="bicubic"))),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint() == prints[0]
    assert len(prints[0]) == 64


def test_fingerprint_does_not_follow_the_folder(tmp_path: Path) -> None:
    module = preset("tiny-qwen3", seed=0)
    here = adapt(module, preprocessing_of(module.config), source="memory").fingerprint
    for name in ("first", "second"):
        save_model(module, tmp_path / name)
        assert load_model(tmp_path / name, device="cpu").fingerprint == here
