"""Adapters in bodies that count positions, keys or layers in their own way; those that cannot be adapted say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    FalconConfig,
    MambaConfig,
    MixtralConfig,
    ModernBertConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    RobertaConfig,
)

from xvision.errors import ConfigError, ModelError
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.llm.config import LlmImageClassifierConfig
from xvision.recipe import Policy, TrainingPlan
from xvision.training.policies import apply_policy

IMAGES = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BODIES: dict[str, PreTrainedConfig] = {
    "roberta": RobertaConfig(**TINY, max_position_embeddings=7),
    "opt": OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32),
    "phi3": Phi3Config(**TINY, num_key_value_heads=2, pad_token_id=None),
    "modernbert": ModernBertConfig(**TINY, pad_token_id=None),
    "falcon": FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True),
    "mamba": MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4),
    "mixtral": MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=2),
}


def other(name: str, attention: Any = "bidirectional") -> LlmImageClassifier:
    torch.manual_seed(0)
    text = AutoConfig.for_model(**BODIES[name].to_dict())
    labels: dict[str, Any] = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    return LlmImageClassifier(
        LlmImageClassifierConfig(text_config=text, image_size=16, attention=attention, **labels)
    ).eval()


@pytest.mark.parametrize("policy", ["prefix", "prompt"])
@pytest.mark.parametrize("name", ["roberta", "opt", "phi3"])
def test_virtual_tokens_move_no_other_in_bodies_that_count_in_their_own_way(name: str, policy: Policy) -> None:
    found = []
    for adapt in (False, True):
        model = other(name)
        if adapt:
            apply_policy(model, TrainingPlan(policy=policy))
        model.set_attn_implementation("eager")
        with torch.no_grad():
            found.append(model(IMAGES, output_attentions=True).attentions[0])
    own = found[1][..., 8:, 8:]
    assert (own / own.sum(dim=-1, keepdim=True) - found[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "policy", "error", "message"),
    [
        ("modernbert", "prefix", ConfigError, "'prefix' would do nothing, or not all it should, in modernbert"),
        ("falcon", "prefix", ConfigError, r"'prefix' cannot be used with falcon \(Sizes of tensors must match"),
        ("mamba", "prefix", ConfigError, "mamba has no attention that a prefix could go before"),
        ("mamba", "ia3", ConfigError, "'ia3' would do nothing, or not all it should, in mamba"),
        ("mamba", "lora", ModelError, "training.adapter: .*incompatible with Mamba"),
    ],
)
def test_bodies_that_cannot_be_adapted_as_asked_are_named(name: str, policy: Policy, error: Any, message: str) -> None:
    model = other(name, "causal")
    with pytest.raises(error, match=message):
        apply_policy(model, TrainingPlan(policy=policy))
    assert model.config.adapter is None


def test_missing_bottlenecks_are_counted() -> None:
    assert apply_policy(other("mixtral"), TrainingPlan(policy="bottleneck")).notes == (
        "mixtral takes 2 bottlenecks in its 2 layers, not two in each",
    )
    assert apply_policy(other("phi3"), TrainingPlan(policy="bottleneck")).notes == ()
