"""CP-LRP: each rule by hand, conservation on language models without biases, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, PreTrainedModel, Qwen3Config, Qwen3Model

from xvision.errors import DataError, ModelError
from xvision.methods.relevance import NOTE, ConservativeRules, contrast, token_relevance
from xvision.methods.target import log_odds

Tokens = Callable[[torch.Tensor], torch.Tensor]
ONE = torch.ones(1, dtype=torch.int64)
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randn(1, 4, 6, dtype=torch.float64, generator=GENERATOR)
FIRST, SECOND = torch.randn(2, 6, dtype=torch.float64, generator=GENERATOR)


class Norm(nn.Module):
    """A root mean square norm as language models have it, which does not round to float32."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.weight * (states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.epsilon))


def body(family: str, attention: str) -> PreTrainedModel:
    """Four layers, grouped queries, gated layers, no biases, in double precision."""
    config, kind = {"llama": (LlamaConfig, LlamaModel), "qwen3": (Qwen3Config, Qwen3Model)}[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(
            config(
                hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                intermediate_size=48, vocab_size=20, initializer_range=0.3, attn_implementation=attention,
            )
        )  # fmt: skip
    model = model.double().eval().requires_grad_(False)
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(part, name, Norm(child.weight, child.variance_epsilon))
    return model


def read_out(states: torch.Tensor) -> torch.Tensor:
    """Two logits, 0 and the last token's product with fixed weights."""
    weights = torch.linspace(-1.0, 1.0, states.shape[-1], dtype=states.dtype)
    score = states[:, -1] @ weights
    return torch.stack((torch.zeros_like(score), score), dim=1)


def scored(function: Callable[[torch.Tensor], torch.Tensor]) -> Tokens:
    """A model whose log-odds of class 1 is the given function (B,) of the tokens."""

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        score = function(tokens)
        return torch.stack((torch.zeros_like(score), score), dim=1)

    return logits


def relevance(function: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return token_relevance(scored(function), tokens, ONE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_relevances_of_a_language_model_without_biases_sum_to_the_logit(family: str, attention: str) -> None:
    model = body(family, attention)
    tokens = torch.randn(3, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def logits(states: torch.Tensor) -> torch.Tensor:
        return read_out(model(inputs_embeds=states).last_hidden_state)

    found = token_relevance(logits, tokens, torch.tensor([1, 1, 0]))
    plain = logits(tokens)
    score = log_odds(plain, torch.tensor([1, 1, 0]))
    assert ((found.sum(dim=1) - score).abs() < 1e-9 * score.abs()).all()
    assert (found.abs().sum(dim=1) > 1.5 * score.abs()).any()  # and not because one token holds it all
    with ConservativeRules():
        torch.testing.assert_close(logits(tokens), plain, rtol=1e-12, atol=1e-12)
    for row in range(3):
        alone = token_relevance(logits, tokens[row : row + 1], torch.tensor([1, 1, 0])[row : row + 1])
        torch.testing.assert_close(alone[0], found[row])


def test_a_linear_model_gives_each_token_its_own_term_and_a_bias_keeps_its_share() -> None:
    found = relevance(lambda tokens: (tokens @ FIRST).sum(dim=1) + 5.0)
    torch.testing.assert_close(found, TOKENS @ FIRST)


def test_a_norm_divides_by_a_constant() -> None:
    weight = SECOND.abs()
    centred = TOKENS - TOKENS.mean(dim=2, keepdim=True)
    by_hand = centred / (TOKENS.var(dim=2, correction=0, keepdim=True) + 1e-5).sqrt() * weight
    found = relevance(lambda tokens: (F.layer_norm(tokens, (6,), weight, SECOND) @ FIRST).sum(dim=1))
    torch.testing.assert_close(found, by_hand @ FIRST)
    root = TOKENS / TOKENS.square().mean(dim=2, keepdim=True).sqrt()
    for norm in (
        lambda tokens: F.rms_norm(tokens, (6,), None, 0.0),
        lambda tokens: tokens / tokens.square().mean(dim=2, keepdim=True).sqrt(),
        lambda tokens: tokens * tokens.square().mean(dim=2, keepdim=True).pow(-0.5),
        lambda tokens: tokens * (1.0 / tokens.square().mean(dim=2, keepdim=True).sqrt()),
    ):
        torch.testing.assert_close(relevance(lambda tokens, n=norm: (n(tokens) @ FIRST).sum(dim=1)), root @ FIRST)
    scaled = relevance(lambda tokens: (F.rms_norm(tokens, (6,), weight) @ FIRST).sum(dim=1))
    torch.testing.assert_close(scaled, root * weight @ FIRST)
    plain = relevance(lambda tokens: (F.layer_norm(tokens, (6,), eps=0.0) @ FIRST).sum(dim=1))
    deviation = TOKENS.var(dim=2, correction=0, keepdim=True).sqrt()
    torch.testing.assert_close(plain, centred / deviation @ FIRST)


def bent(states: torch.Tensor) -> torch.Tensor:
    return 0.5 * states * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (states + 0.044715 * torch.pow(states, 3.0))))


@pytest.mark.parametrize(
    "activation",
    [
        F.silu, F.gelu, F.relu, F.mish, F.hardswish, F.elu, torch.tanh, F.leaky_relu, bent, nn.SiLU(inplace=False),
        lambda states: states * torch.sigmoid(1.702 * states),
        lambda states: states * 0.5 * (1.0 + torch.erf(states / math.sqrt(2.0))),
        lambda states: F.gelu(states, approximate="tanh"),
    ],
)  # fmt: skip
def test_an_activation_hands_its_value_to_what_went_in(activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    found = relevance(lambda tokens: (activation(tokens) @ FIRST).sum(dim=1))
    torch.testing.assert_close(found, activation(TOKENS) @ FIRST)


@pytest.mark.parametrize("activation", [F.silu, F.gelu, torch.tanh])
def test_an_activation_at_zero_is_safe(activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tokens = TOKENS.clone()
    tokens[0, 1] = 0.0
    found = relevance(lambda given: (activation(given) @ FIRST).sum(dim=1), tokens)
    assert found[0, 1] == 0.0
    torch.testing.assert_close(found, activation(tokens) @ FIRST)


def test_an_activation_in_place_is_not_applied_twice() -> None:
    found = relevance(lambda tokens: (F.silu(tokens * 1.0, inplace=True) @ FIRST).sum(dim=1))
    torch.testing.assert_close(found, F.silu(TOKENS) @ FIRST)


def test_a_product_of_two_things_that_depend_on_the_tokens_is_halved() -> None:
    """Of (Σ x·a)(Σ x·b) each token gets ½ (x·a) Σ x·b + ½ (x·b) Σ x·a."""
    first, second = TOKENS @ FIRST, TOKENS @ SECOND
    expected = (first * second.sum() + second * first.sum()) / 2
    for product in (
        lambda a, b: a * b, torch.mul, lambda a, b: a.mul(b), torch.multiply,
    ):  # fmt: skip
        found = relevance(lambda tokens, p=product: p((tokens @ FIRST).sum(dim=1), (tokens @ SECOND).sum(dim=1)))
        torch.testing.assert_close(found, expected)
    assert float((expected.sum() - first.sum() * second.sum()).abs()) < 1e-9
    scaled = relevance(lambda tokens: 3.0 * (torch.tensor(2.0) * (tokens @ FIRST)).sum(dim=1))
    torch.testing.assert_close(scaled, 6.0 * first)


def attended(tokens: torch.Tensor, *, fused: bool) -> torch.Tensor:
    """One head whose queries, keys and values are halves of the tokens."""
    query, key, value = tokens[..., :3], tokens[..., 3:], tokens @ torch.outer(FIRST, SECOND)
    if fused:
        return F.scaled_dot_product_attention(query, key, value)
    return F.softmax(query @ key.transpose(1, 2) / math.sqrt(3.0), dim=-1) @ value


@pytest.mark.parametrize("fused", [True, False])
def test_attention_hands_relevance_to_values_by_weight(fused: bool) -> None:
    weights = (TOKENS[..., :3] @ TOKENS[..., 3:].transpose(1, 2) / math.sqrt(3.0)).softmax(dim=-1)[0, -1]
    values = (TOKENS @ torch.outer(FIRST, SECOND) @ SECOND)[0]
    found = relevance(lambda tokens: attended(tokens, fused=fused)[:, -1] @ SECOND)
    torch.testing.assert_close(found[0], weights * values)


def test_more_than_two_classes_are_contrasted_with_the_mean_of_the_others() -> None:
    heads = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = token_relevance(lambda tokens: (tokens @ heads).sum(dim=1), TOKENS, torch.tensor([2]))
    logits = (TOKENS @ heads).sum(dim=1)
    others = logits[:, :2].softmax(dim=1)
    expected = logits[:, 2] - (others * logits[:, :2]).sum(dim=1)
    torch.testing.assert_close(contrast(logits, torch.tensor([2])), expected)
    torch.testing.assert_close(found.sum(dim=1), expected)
    torch.testing.assert_close(found[0], TOKENS[0] @ heads[:, 2] - TOKENS[0] @ heads[:, :2] @ others[0])
    torch.testing.assert_close(contrast(logits[:, :2], ONE), log_odds(logits[:, :2], ONE))


def test_after_the_context_every_function_is_as_before() -> None:
    def gradients() -> list[torch.Tensor]:
        start = TOKENS.clone().requires_grad_()
        outputs = [
            F.layer_norm(start, (6,)), F.silu(start), F.gelu(start), start.softmax(dim=-1) * start, start * start.square(),
            F.scaled_dot_product_attention(start, start, start), start / start.norm(), bent(start),
        ]  # fmt: skip
        return [torch.autograd.grad((output * SECOND).sum(), start)[0] for output in outputs]

    before = gradients()
    with ConservativeRules():
        inside = gradients()
    with pytest.raises(ZeroDivisionError), ConservativeRules():
        raise ZeroDivisionError
    with pytest.raises(ModelError):
        relevance(lambda tokens: tokens.exp().sum(dim=(1, 2)))
    for one, other, bent_one in zip(before, gradients(), inside, strict=True):
        assert torch.equal(one, other)
        assert not torch.allclose(one, bent_one)


def test_tokens_and_parameters_are_left_as_they_were() -> None:
    layer, tokens = nn.Linear(6, 2).double().requires_grad_(False), TOKENS.clone()
    with torch.inference_mode():
        token_relevance(lambda given: layer(given).sum(dim=1), tokens.clone(), ONE)
    assert not any(weights.requires_grad or weights.grad is not None for weights in layer.parameters())
    token_relevance(lambda given: layer(given).sum(dim=1), tokens, ONE)
    assert not tokens.requires_grad
    assert torch.equal(tokens, TOKENS)


@pytest.mark.parametrize(
    ("function", "step"),
    [
        (lambda tokens: tokens.exp().sum(dim=(1, 2)), "ExpBackward"),
        (lambda tokens: F.softplus(tokens).sum(dim=(1, 2)), "SoftplusBackward"),
        (lambda tokens: tokens.square().sum(dim=(1, 2)), "PowBackward"),
        (lambda tokens: (tokens @ tokens.transpose(1, 2)).sum(dim=(1, 2)), "BmmBackward"),
        (lambda tokens: tokens.log_softmax(dim=2)[:, 0, 0], "LogSoftmaxBackward"),
        (lambda tokens: F.normalize(tokens, dim=2).sum(dim=(1, 2)), "DivBackward"),
        (lambda tokens: F.group_norm(tokens, 2).sum(dim=(1, 2)), "NativeGroupNormBackward"),
    ],
)  # fmt: skip
def test_a_step_without_a_rule_is_refused_by_name(function: Callable[[torch.Tensor], torch.Tensor], step: str) -> None:
    with pytest.raises(ModelError, match=rf"CP-LRP has no rule for a step of this model \({step}.*use integrated_grad"):
        relevance(function)


def test_attention_modules_that_hide_their_steps_are_refused() -> None:
    attention = nn.MultiheadAttention(6, 2, batch_first=True).double().eval().requires_grad_(False)
    for weights in (True, False):
        with pytest.raises(ModelError, match="CP-LRP has no rule"):
            relevance(lambda tokens, w=weights: attention(tokens, tokens, tokens, need_weights=w)[0].sum(dim=(1, 2)))


def test_unusable_models_and_input_are_an_error() -> None:
    layer = nn.Linear(6, 2).double()
    with pytest.raises(ModelError, match="CP-LRP needs parameters without gradients"):
        token_relevance(lambda tokens: layer(tokens).sum(dim=1), TOKENS, ONE)
    with pytest.raises(ModelError, match="no gradient of the logits reaches the tokens"):
        relevance(lambda tokens: tokens.detach().sum(dim=(1, 2)))
    with pytest.raises(DataError, match=r"tokens of shape \(1, 4, 6\) and targets of shape \(2,\)"):
        token_relevance(read_out, TOKENS, torch.ones(2, dtype=torch.int64))
    with pytest.raises(DataError, match="found target 2"):
        token_relevance(read_out, TOKENS, 2 * ONE)


def test_the_note_names_the_patents() -> None:
    assert "patents" in NOTE
    assert "commercial use may need a licence" in NOTE
