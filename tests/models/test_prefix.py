"""Going on from kept keys and values: the logits of one pass of all tokens, or a refusal that says why."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from tests.models.adapting import adapted
from tests.models.builders import VISION, seeded
from tests.models.test_token_passes import gap, images, language, reading, wrapped
from xvision.errors import ModelError
from xvision.models.metered import Meter, MeteredClassifier
from xvision.models.prefix import require_same
from xvision.models.protocols import PrefixClassifier

CAUSAL = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2")


def changed(tokens: torch.Tensor, start: int) -> torch.Tensor:
    noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(start))
    return torch.cat((tokens[:, :start], noise[:, start:]), dim=1)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("text", [False, True])
def test_later_tokens_alone_give_the_logits_of_all(name: str, readout: str, text: bool) -> None:
    model = reading(name, readout) if text else language(name, readout=readout)
    tokens = model.embedded(images(model))
    prefix, count = model.prefix(tokens), tokens.shape[1]
    assert gap(prefix.logits, model.from_embedded(tokens)) <= 1e-5
    rows = torch.tensor([2, 0, 2, 1])
    for start in (0, 1, 7, count - 2, count - 1):
        other = changed(tokens[rows], start)
        found = model.from_prefix(prefix, rows, start, other[:, start:])
        assert gap(found, model.from_embedded(other)) <= 1e-5
        assert gap(found, prefix.logits[rows]) > 1e-3


def test_one_image_serves_a_batch_and_a_batch_of_one() -> None:
    model = language("tiny-qwen3")
    tokens = model.embedded(images(model))
    prefix, other = model.prefix(tokens[1:2]), changed(tokens[[1, 1, 1]], 5)
    zeros = torch.zeros(3, dtype=torch.int64)
    expected = model.from_embedded(other)
    assert gap(model.from_prefix(prefix, zeros, 5, other[:, 5:]), expected) <= 1e-5
    assert gap(model.from_prefix(prefix, zeros[:1], 5, other[:1, 5:]), expected[:1]) <= 1e-5


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_adapters_within_the_layers_are_gone_on_from(kind: str) -> None:
    model = wrapped(adapted(kind))
    tokens = model.embedded(images(model))
    other = changed(tokens, 2)
    found = model.from_prefix(model.prefix(tokens), torch.arange(3), 2, other[:, 2:])
    assert gap(found, model.from_embedded(other)) <= 1e-5


REFUSED = {
    "bidirectional": (lambda: language("tiny-qwen3", attention="bidirectional"), "every token .* sees every other"),
    "bert": (lambda: language("tiny-bert", attention="bidirectional"), "every token .* sees every other"),
    "vision": (lambda: wrapped(seeded(next(iter(VISION.values())))), "is no language model"),
    "prefix": (lambda: wrapped(adapted("prefix")), "learned tokens come before"),
    "prompt": (lambda: wrapped(adapted("prompt")), "learned tokens come before"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_gone_on_from_is_refused(name: str) -> None:
    build, why = REFUSED[name]
    model = build()
    with pytest.raises(ModelError, match=why):
        model.prefix(model.embedded(images(model)))


@pytest.mark.parametrize(("start", "given"), [(3, 13), (17, 0), (-1, 17), (0, 16)])
def test_tokens_that_do_not_fit_their_start_are_refused(start: int, given: int) -> None:
    model = language("tiny-qwen3")
    tokens = model.embedded(images(model))
    with pytest.raises(ModelError, match=rf"\(3, {given}, 64\) from {start} on: this model has 17"):
        model.from_prefix(model.prefix(tokens), torch.arange(3), start, tokens[:, :given])


def test_logits_that_differ_are_refused() -> None:
    require_same(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.00001]]))
    with pytest.raises(ModelError, match=r"moves the logits of this model by 0\.5"):
        require_same(torch.tensor([[1.0, 2.5]]), torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ModelError, match="by nan"):
        require_same(torch.tensor([[torch.nan, 2.5]]), torch.tensor([[1.0, 2.0]]))


def without(parameter: str) -> Any:
    """A model whose body does not name one of the things it has to be given."""
    model = language("tiny-gpt2")
    model.embedded(images(model))  # its layers are found before it is broken
    forward = model.module.backbone.forward

    def lacking(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return forward(inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids)

    def forgetful(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor,
                  past_key_values: Any, use_cache: bool) -> Any:  # fmt: skip
        return lacking(inputs_embeds, attention_mask, position_ids)

    def broken(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor,
               past_key_values: Any, use_cache: bool) -> Any:  # fmt: skip
        raise TypeError("a memory of its own kind")

    model.module.backbone.forward = {"lacking": lacking, "forgetful": forgetful, "broken": broken}[parameter]
    return model


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("lacking", "GPT2Model takes no keys and values"),
        ("forgetful", "GPT2Model does not keep keys and values in every layer"),
        ("broken", "GPT2Model does not hand out keys and values: .*a memory of its own kind"),
    ],
)
def test_bodies_that_do_not_keep_keys_and_values_are_refused(kind: str, why: str) -> None:
    model = without(kind)
    tokens = torch.zeros(1, len(model.token_map.names), 64)
    with pytest.raises(ModelError, match=why):
        model.prefix(tokens)


def test_the_model_is_left_as_it_was() -> None:
    model = language("tiny-gemma3")
    pictures = images(model)
    config, before = deepcopy(model.module.config.to_dict()), model.logits(pictures)
    tokens = model.embedded(pictures)
    prefix = model.prefix(tokens)
    kept = [each.clone() for each in prefix.keys]
    model.from_prefix(prefix, torch.arange(3), 4, tokens[:, 4:] + 1)
    assert torch.equal(model.logits(pictures), before)
    assert model.module.config.to_dict() == config
    assert all(torch.equal(one, other) for one, other in zip(prefix.keys, kept, strict=True))
    assert not any(part._forward_pre_hooks or "forward" in vars(part) for part in model.module.modules())
    assert torch.is_grad_enabled()


def test_every_image_is_one_pass() -> None:
    meter = Meter()
    model = MeteredClassifier(language("tiny-llama"), meter)
    assert isinstance(model.inner, PrefixClassifier)
    tokens = model.embedded(images(model))
    prefix = model.prefix(tokens)
    assert meter.forward == 3
    model.from_prefix(prefix, torch.tensor([0, 0, 1, 2, 2]), 9, tokens[[0, 0, 1, 2, 2], 9:])
    assert (meter.forward, meter.backward) == (8, 0)
    assert prefix.size == sum(each.numel() * 4 for each in (*prefix.keys, *prefix.values, prefix.hidden))
