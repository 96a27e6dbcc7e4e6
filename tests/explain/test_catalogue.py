"""Which methods fit which model: defaults, refusals with their reasons, and the units that are removed together."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import ResNetConfig, ResNetForImageClassification

from tests.analyses.subjects import linear_model
from tests.models.builders import seeded, vit
from xvision.errors import ConfigError
from xvision.explain.catalogue import KNOWN_WRONG, chosen, controls, methods, refusals, units_of
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import InputSpec
from xvision.result import NotApplicable


def language_model(attention: str = "causal") -> HuggingFaceClassifier:
    module = preset("tiny-qwen3", image_size=32, patch_size=8, attention=attention, seed=0)
    return adapt(module, preprocessing_of(module.config), source="a test")


def convolutional(side: int = 32) -> HuggingFaceClassifier:
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
    )
    module = seeded(lambda: ResNetForImageClassification(config))
    return adapt(module, Preprocessing(InputSpec(1, side, side), 1.0, (0.5,), (0.5,)), source="a test")


def vision_transformer() -> HuggingFaceClassifier:
    module = vit()
    side, channels = module.config.image_size, module.config.num_channels
    spec = Preprocessing(InputSpec(channels, side, side), 1.0, (0.5,) * channels, (0.5,) * channels)
    return adapt(module, spec, source="a test")


def names(found: tuple) -> list[str]:
    return [method.name for method in found]


def test_names_and_labels_are_used_once() -> None:
    everything = [*methods().values(), *controls().values()]
    assert len({method.label for method in everything}) == len(everything)
    assert set(methods()) & (set(controls()) | set(KNOWN_WRONG)) == set()
    assert list(controls()) == ["random", "edges", "centre", "brightness"]
    assert all(method.source and method.passes for method in everything)


def test_a_transformer_gets_attention_and_token_methods_by_default() -> None:
    for model in (language_model(), vision_transformer()):
        found = names(chosen(model, ()))
        assert {"integrated_gradients", "saliency", "token_grad_cam", "corrected_rollout", "chefer"} <= set(found)
        assert not {"grad_cam", "layer_cam"} & set(found)


def test_what_is_surest_comes_first() -> None:
    found = chosen(language_model(), ())
    assert names(found)[:2] == ["integrated_gradients", "saliency"]
    assert [method.chosen for method in found] == sorted(method.chosen or 0 for method in found)


def test_a_convolutional_network_gets_activation_maps_by_default() -> None:
    found = names(chosen(convolutional(), ()))
    assert {"integrated_gradients", "saliency", "grad_cam"} <= set(found)
    assert not {"token_grad_cam", "corrected_rollout", "chefer"} & set(found)


@pytest.mark.parametrize("name", ["corrected_rollout", "raw_attention", "chefer", "legrad", "token_ablation", "cp_lrp"])
def test_attention_methods_are_refused_on_a_network_without_it(name: str) -> None:
    with pytest.raises(NotApplicable, match=rf"{name} is refused: .*use "):
        chosen(convolutional(), (name,))


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "layer_cam"])
def test_activation_maps_are_refused_on_tokens(name: str) -> None:
    with pytest.raises(NotApplicable, match=rf"{name} is refused: .*token_grad_cam"):
        chosen(language_model(), (name,))


def test_plain_rollout_is_refused_under_a_causal_mask() -> None:
    with pytest.raises(NotApplicable, match=r"attention_rollout is refused: .*corrected_rollout"):
        chosen(language_model(), ("attention_rollout",))
    assert names(chosen(language_model("bidirectional"), ("attention_rollout",))) == ["attention_rollout"]


@pytest.mark.parametrize("name", list(KNOWN_WRONG))
def test_methods_that_other_tools_draw_wrongly_are_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is refused: .*use "):
        chosen(language_model(), (name,))
    assert refusals(convolutional())[name] == KNOWN_WRONG[name]


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'salience'.*saliency"):
        chosen(language_model(), ("salience",))


def test_a_repeated_name_is_taken_once() -> None:
    assert names(chosen(language_model(), ("saliency", "saliency"))) == ["saliency"]


def test_a_model_with_tokens_is_divided_into_its_patches() -> None:
    units = units_of(language_model())
    assert units.count == 16
    np.testing.assert_array_equal(units.areas, np.full(16, 64))


def test_another_model_is_divided_into_a_grid() -> None:
    assert units_of(convolutional(32)).count == 16 * 16
    assert units_of(linear_model(np.ones((16, 16)))).count == 16 * 16
    assert units_of(linear_model(np.ones((56, 56)))).count == 14 * 14
