"""CP-LRP as the catalogue offers it: painted on the patches of models with tokens, never without its note."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.explain.small_classifiers import Network, Scores, asked, images, language_model, vision_transformer, windowed
from xvision.explain.relevance_methods import METHODS
from xvision.methods.relevance import token_relevance
from xvision.methods.target import log_odds

(CP_LRP,) = METHODS
FAMILIES = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert")


@pytest.mark.parametrize("family", FAMILIES)
def test_new_language_models_have_no_biases_so_tokens_share_the_log_odds(family: str) -> None:
    model = language_model(family)
    pixels, targets = images(model), torch.tensor([0, 1, 1])
    shares = token_relevance(model.from_embedded, model.embedded(pixels), targets)
    expected = log_odds(model.logits(pixels), targets)
    torch.testing.assert_close(shares.sum(dim=1), expected.detach(), rtol=1e-4, atol=1e-5)
    found = CP_LRP.run(asked(model, pixels, (0, 1, 1))).values
    assert found.shape == (3, 32, 32)
    image = shares[:, : len(model.token_map.image)]
    np.testing.assert_allclose(found[:, 4::8, 4::8].reshape(3, -1), image, rtol=1e-4, atol=1e-6)
    assert (found[:, :8, :8] == found[:, :1, :1]).all()


def test_a_vision_transformer_is_painted_patch_by_patch() -> None:
    model = vision_transformer()
    pixels = images(model)
    found = CP_LRP.run(asked(model, pixels, (0, 1, 1))).values
    shares = token_relevance(model.from_embedded, model.embedded(pixels), torch.tensor([0, 1, 1]))
    np.testing.assert_allclose(found[:, ::8, ::8].reshape(3, -1), shares[:, 1:], rtol=1e-4, atol=1e-6)
    assert (found < 0).any()
    assert (found > 0).any()
    alone = CP_LRP.run(asked(model, pixels[2:], (1,))).values
    np.testing.assert_allclose(alone[0], found[2], rtol=1e-4, atol=1e-6)
    assert not any(weights.requires_grad or weights.grad is not None for weights in model.module.parameters())


def test_models_without_tokens_are_refused_with_what_to_use_instead() -> None:
    assert CP_LRP.refuse(vision_transformer()) is None
    assert CP_LRP.refuse(Scores()) == "Scores gives no gradients: use patch_ablation, kernel_shap or rise"
    assert CP_LRP.refuse(Network()) == "Network is a convolutional network, for which it has no rules: use hires_cam"
    reason = str(CP_LRP.refuse(windowed()))
    assert "cannot be followed from token to token (windowed or hybrid attention" in reason
    assert reason.endswith("use integrated_gradients")


def test_it_is_taken_only_when_named_and_says_that_it_is_patented() -> None:
    assert CP_LRP.chosen is None
    assert "patents" in CP_LRP.note
