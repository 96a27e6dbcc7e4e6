"""Adapters: what each computes, in closed form; that they are saved with the classifier, merged where they can be, and
refused where config.json asks for nonsense."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.models.adapting import KEPT, MERGED, MODES, PRESETS, SETTINGS, adapted, gap, images, logits
from tests.models.builders import edit_config
from xvision import codec
from xvision.errors import MissingExtra, ModelError
from xvision.models.checkpoint import load_model, save_model
from xvision.models.huggingface import HuggingFaceAttentionClassifier, adapt, preprocessing_of
from xvision.models.llm.adapters import RankSchedule, adapter_weights, attach, merged, misfit, read_adapter
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import LlmImageClassifierConfig


@pytest.fixture(autouse=True)
def same_numbers_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-gpt2"])
def test_lora_adds_a_scaled_product_of_two_thin_matrices(name: str) -> None:
    layer: Any = next(part for part in adapted("lora", name).backbone.modules() if hasattr(part, "lora_A"))
    base, down, up = layer.get_base_layer(), layer.lora_A["default"].weight, layer.lora_B["default"].weight
    entered = torch.randn(2, base.weight.shape[0] if name == "tiny-gpt2" else base.weight.shape[1])
    assert down.shape[0] == up.shape[1] == 3
    assert gap(layer(entered), base(entered) + 6 / 3 * entered @ down.T @ up.T) < 1e-5


def test_dora_gives_every_row_of_the_sum_a_learned_length() -> None:
    layer: Any = next(part for part in adapted("dora").backbone.modules() if hasattr(part, "lora_A"))
    summed = layer.get_base_layer().weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    lengths = layer.lora_magnitude_vector["default"].weight
    entered = torch.randn(2, summed.shape[1])
    assert gap(layer(entered), entered @ (lengths[:, None] * summed / summed.norm(dim=1, keepdim=True)).T) < 1e-5


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-gpt2", "tiny-bert"])
def test_ia3_scales_what_each_matrix_gives_bias_included(name: str) -> None:
    layer: Any = next(part for part in adapted("ia3", name).backbone.modules() if hasattr(part, "ia3_l"))
    base = layer.get_base_layer()
    entered = torch.randn(2, base.weight.shape[0 if name == "tiny-gpt2" else 1])
    assert gap(layer(entered), layer.ia3_l["default"].flatten() * base(entered)) < 1e-5


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_copy_is_independent_of_the_original(kind: str) -> None:
    model = adapted(kind)
    before, twin = logits(model), copy.deepcopy(model)
    assert gap(logits(twin), before) == 0.0
    with torch.no_grad():
        for weights in adapter_weights(twin.backbone):
            weights.add_(torch.randn_like(weights))
    assert gap(logits(twin), before) > 1e-3
    assert gap(logits(model), before) == 0.0


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", MERGED)
def test_merged_is_a_plain_classifier_with_the_same_logits(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(kind, name)
    plain, before = merged(model), logits(model)
    assert gap(logits(plain), before) < 1e-5
    assert gap(logits(preset(name, image_size=16, seed=0)), before) > 1e-2
    assert plain.config.adapter is None
    assert set(plain.state_dict()) == set(preset(name, image_size=16, seed=0).state_dict())
    assert gap(logits(model), before) == 0.0
    save_model(plain, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = load_model(tmp_path / "model", device="cpu")
    assert gap(loaded.module(images()).logits, logits(plain)) == 0.0


@pytest.mark.parametrize("kind", KEPT)
def test_adapters_without_a_merged_form_stay(kind: str) -> None:
    model = adapted(kind)
    twin = merged(model)
    assert twin is not model
    assert twin.config.adapter == SETTINGS[kind]
    assert gap(logits(twin), logits(model)) == 0.0
    plain = preset("tiny-qwen3", image_size=16, seed=0)
    assert gap(logits(merged(plain)), logits(plain)) == 0.0


def test_weights_that_are_not_finite_are_not_merged() -> None:
    model = adapted("lora")
    next(adapter_weights(model.backbone)).data.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"The adapter of layers\.0\.self_attn\.q_proj cannot be merged \(NaNs"):
        merged(model)


@pytest.mark.parametrize("kind", SETTINGS)
def test_saved_in_one_file_and_loaded_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    model = adapted(kind)
    save_model(model, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    loaded = load_model(tmp_path / "model", device="cpu")
    assert gap(loaded.module(images()).logits, logits(model)) == 0.0
    assert loaded.fingerprint == adapt(model, preprocessing_of(model.config), source="").fingerprint


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix", "prompt"])
def test_loading_without_peft_names_the_extra(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(adapted(kind), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=rf"The adapter '{kind}' needs .*pip install 'xvision\[peft\]'"):
        load_model(tmp_path / "model", device="cpu")


def test_bottlenecks_do_not_need_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(adapted("bottleneck"), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "peft", None)
    load_model(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("attention", MODES)
def test_attention_and_pixel_gradients_of_an_adapted_model(kind: str, attention: Any) -> None:
    model = adapted(kind, attention=attention)
    classifier = adapt(model, preprocessing_of(model.config), source="here")
    assert isinstance(classifier, HuggingFaceAttentionClassifier)
    pixels = torch.rand(2, 1, 16, 16, requires_grad=True)
    found = classifier.attention(pixels)
    virtual = ("virtual",) * SETTINGS[kind].get("virtual_tokens", 0)
    assert found.tokens.names == (*virtual, "image", "image", "image", "image", "readout")
    assert gap(found.logits, classifier.logits(pixels)) < 1e-5
    rows = found.tokens.allowed[: len(virtual)]
    if kind == "prefix":  # a prefix is read and reads nothing: the reference of rollout must know
        assert (rows == np.eye(*rows.shape, dtype=bool)).all()
    else:
        assert (rows == np.tri(*rows.shape, dtype=bool)).all() or attention == "bidirectional"
    for layer in found.weights:
        assert gap(layer.sum(dim=-1), torch.ones(())) < 1e-5
        assert not layer[..., torch.from_numpy(~found.tokens.allowed)].any()
    torch.autograd.grad(found.weights[0].square().sum(), pixels, retain_graph=True)
    (gradient,) = torch.autograd.grad(classifier.logits(pixels)[:, 1].sum(), pixels)
    assert (gradient != 0).any(dim=(1, 2, 3)).all()
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    shuffled = classifier.randomised(0)
    assert gap(shuffled.logits(pixels), classifier.logits(pixels)) > 1e-4


def test_a_window_shorter_than_all_tokens_has_no_attention_map() -> None:
    model = adapted("prompt", "tiny-gemma3")
    assert isinstance(adapt(model, preprocessing_of(model.config), source=""), HuggingFaceAttentionClassifier)
    model.config.text_config.sliding_window = 7  # one less than virtual tokens, image and read-out
    assert not isinstance(adapt(model, preprocessing_of(model.config), source=""), HuggingFaceAttentionClassifier)


HOSTILE: dict[str, tuple[object, str]] = {
    "text": ("lora", r"adapter is 'lora'"),
    "list": ([1], r"adapter is \[1\]"),
    "no kind": ({"rank": 8}, "kind"),
    "unknown kind": ({"kind": "pickle"}, "pickle"),
    "list as kind": ({"kind": ["lora"]}, "kind"),
    "unknown key": ({**SETTINGS["prefix"], "base_model_name_or_path": "x"}, r"unknown key 'prefix\.base_model"),
    "key of another kind": ({**SETTINGS["prompt"], "rank": 2}, "rank"),
    "missing key": ({"kind": "lora", "rank": 2}, "alpha"),
    "huge rank": ({**SETTINGS["lora"], "rank": 10**15}, "rank is 1000000000000000"),
    "no rank": ({**SETTINGS["lora"], "rank": 0}, "rank is 0"),
    "rank wider than the body": ({**SETTINGS["lora"], "rank": 65}, "rank is 65 but the backbone is 64 wide"),
    "true as rank": ({**SETTINGS["lora"], "rank": True}, "rank"),
    "text as rank": ({**SETTINGS["dora"], "rank": "8"}, "rank"),
    "infinite alpha": ({**SETTINGS["lora"], "alpha": float("inf")}, "alpha"),
    "no alpha": ({**SETTINGS["adalora"], "alpha": -1.0}, "alpha is -1"),
    "dropout of all": ({**SETTINGS["lora"], "dropout": 1.0}, "dropout is 1"),
    "pattern as targets": ({**SETTINGS["lora"], "targets": ".*"}, "targets"),
    "pattern in targets": ({**SETTINGS["lora"], "targets": ["(a+)+$"]}, "which is no name of a module"),
    "long target": ({**SETTINGS["ia3"], "targets": ["a" * 201]}, "which is no name of a module"),
    "many targets": ({**SETTINGS["ia3"], "targets": ["a"] * 5000}, "targets holds 5000 names"),
    "target that is not there": ({**SETTINGS["lora"], "targets": ["proj"]}, "names 'proj', which no linear layer"),
    "many tokens": ({**SETTINGS["prefix"], "virtual_tokens": 10**9}, "virtual_tokens is 1000000000"),
    "no tokens": ({**SETTINGS["prompt"], "virtual_tokens": 0}, "virtual_tokens is 0"),
    "wide bottleneck": ({"kind": "bottleneck", "width": 65}, "width is 65 but the backbone itself is 64 wide"),
    "negative width": ({"kind": "bottleneck", "width": -1}, "width is -1"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_settings_from_a_foreign_checkpoint_are_checked(case: str, tmp_path: Path) -> None:
    value, message = HOSTILE[case]
    save_model(preset("tiny-qwen3", image_size=16, seed=0), tmp_path / "model")
    edit_config(tmp_path / "model", adapter=value)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path / "model", device="cpu")
    assert "config.json: adapter" in str(caught.value)


def test_settings_are_checked_before_anything_is_built() -> None:
    text = preset("tiny-qwen3", image_size=16, seed=0).config.text_config
    with pytest.raises(ModelError, match=r"config\.json: adapter.*virtual_tokens is 5000"):
        LlmImageClassifierConfig(text_config=text, image_size=16, adapter={"kind": "prompt", "virtual_tokens": 5000})


@pytest.mark.parametrize("kind", SETTINGS)
def test_attaching_freezes_the_body_and_leaves_the_adapter_free(kind: str) -> None:
    backbone = adapted(kind).backbone
    free = {id(weights) for weights in adapter_weights(backbone)}
    assert free == {id(weights) for weights in backbone.parameters() if weights.requires_grad}


def test_an_adapter_without_its_weights_is_refused(tmp_path: Path) -> None:
    save_model(preset("tiny-qwen3", image_size=16, seed=0), tmp_path / "model")
    edit_config(tmp_path / "model", adapter=SETTINGS["prompt"])
    with pytest.raises(ModelError, match=r"lacks 1 weights .*virtual"):
        load_model(tmp_path / "model", device="cpu")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["kind", "rank", "x"]), inner, max_size=3)
        ),
        max_leaves=5,
    )
)
def test_no_settings_end_in_a_traceback(data: object) -> None:
    with pytest.raises(ModelError):
        read_adapter(data)


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_survive_json(kind: str) -> None:
    assert codec.plain(read_adapter(SETTINGS[kind])) == SETTINGS[kind]


def test_only_the_named_matrices_are_adapted_and_nothing_with_a_longer_name() -> None:
    model = preset("tiny-qwen3", image_size=16, seed=0)
    model.backbone.layers[0].self_attn.add_module("seq_proj", nn.Linear(2, 2))
    settings = read_adapter({**SETTINGS["lora"], "targets": ["q_proj", "layers.1.mlp.down_proj"]})
    assert misfit(model.backbone, settings) is None
    attach(model.backbone, settings)
    touched = {name for name, part in model.backbone.named_modules() if hasattr(part, "lora_A")}
    assert touched == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"}


def schedule(steps: int) -> tuple[LlmImageClassifier, RankSchedule]:
    model = adapted("adalora")
    settings = read_adapter(SETTINGS["adalora"])
    return model, RankSchedule(model.backbone, settings, steps)


def test_penalty_of_adalora_and_its_gradient_are_those_of_the_paper() -> None:
    model, ranks = schedule(20)
    parts = [
        (layer.lora_A["default"], layer.lora_B["default"])
        for layer in model.backbone.modules()
        if hasattr(layer, "lora_E")
    ]
    terms = [torch.linalg.norm(right @ right.T - torch.eye(3)) for right, _ in parts]
    terms += [torch.linalg.norm(left.T @ left - torch.eye(3)) for _, left in parts]
    expected = 0.5 * torch.stack(terms).mean()
    assert gap(ranks.penalty(), expected) < 1e-6
    right = parts[0][0]
    (gradient,) = torch.autograd.grad(expected, right)
    right.grad = torch.ones_like(right)
    ranks.before_step()
    assert right.grad is not None
    assert gap(right.grad, 1 + gradient) < 1e-6


def test_cuts_stay_cut_after_the_last_one() -> None:
    model, ranks = schedule(10)
    for step in range(1, 11):
        model.zero_grad()
        model(images(), labels=torch.tensor([0, 1])).loss.backward()
        with torch.no_grad():
            for weights in adapter_weights(model.backbone):
                weights.sub_(0.1 * weights.grad + 0.01)  # moves the cut ones away from zero too
        ranks.after_step(step)
        if step == ranks.last:
            cut = {name for name, rank in ranks.ranks().items() if rank < 3}
            total = sum(ranks.ranks().values())
    assert total == 2 * len(ranks.ranks())  # what the settings say may be kept, on average
    assert cut
    assert sum(ranks.ranks().values()) == total
