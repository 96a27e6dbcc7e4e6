"""The weights of a pretrained language model moved into a classifier, and a look at whether the body does as asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xvision.errors import ModelError
from xvision.models.llm.text import NOTHING, unknown_id
from xvision.models.loading import DAMAGE, TextBackbone

if TYPE_CHECKING:
    from xvision.models.llm.classifier import LlmImageClassifier


def first_position(backbone: nn.Module) -> tuple[int, int | None]:
    """The number of the first position, and how many there are: RoBERTa starts after its padding token's."""
    for name, part in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.padding_idx + 1, part.num_embeddings - part.padding_idx - 1
    return 0, None


@torch.no_grad()
def transplant(text: TextBackbone, model: LlmImageClassifier, label_ids: Iterable[int]) -> None:
    """Every weight of the text model but its pooler and the words that are not needed.

    The read-out and the unknown word start as the mean word, image tokens as large as words are, and label words as
    their rows of the language model's output layer.
    """
    body: Any = text.body
    words, table = body.get_input_embeddings(), model.backbone.get_input_embeddings()
    vocabulary = words(torch.arange(words.num_embeddings))
    mean = vocabulary.mean(dim=0)
    table.weight[0] = mean
    if model.vocabulary is not None:
        unknown = unknown_id(model.vocabulary.tokenizer)
        table.weight[1] = mean if unknown is None else vocabulary[unknown]
        table.weight[2:] = vocabulary[list(model.vocabulary.ids)]
    model.stem.norm.weight.fill_(vocabulary.std())
    if text.output is not None:
        model.classifier.weight.copy_(text.output[list(label_ids)])
    body.set_input_embeddings(table)
    if hasattr(body, "pooler"):
        body.pooler = None
    model.backbone.load_state_dict(body.state_dict())


@torch.no_grad()
def check_attention(model: LlmImageClassifier) -> None:
    """Some backbones ignore the requested mask: change the last token and see whether the first one notices."""
    backbone, width = model.eval().backbone, model.backbone.get_input_embeddings().embedding_dim
    tokens = torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0))
    tokens[1, :3] = tokens[0, :3]
    first = backbone(inputs_embeds=tokens).last_hidden_state[:, 0]
    if torch.allclose(first[0], first[1], atol=1e-6) != (model.config.attention == "causal"):
        raise ModelError(
            f"The backbone {model.config.text_config.model_type} cannot be run with {model.config.attention} attention: "
            "ask for the other kind or choose another backbone."
        )


@torch.no_grad()
def check_padding(model: LlmImageClassifier) -> None:
    """Some backbones have no mask or no positions of one's own: an empty place before the image must change nothing."""
    config = model.config
    shape = (1, config.num_channels, config.image_size, config.image_size)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = _last_state(model.eval(), pixels, None)
    try:
        padded = _last_state(model, pixels, torch.tensor([[NOTHING]]))
    except DAMAGE:
        padded = torch.full_like(plain, torch.inf)
    if not torch.allclose(padded, plain, atol=1e-4, rtol=1e-4):
        raise ModelError(
            f"The backbone {config.text_config.model_type} cannot read texts of different lengths: set text_tokens to 0 "
            "or choose another backbone."
        )


def _last_state(model: LlmImageClassifier, pixels: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
    state: torch.Tensor = model(pixels, text=text, output_hidden_states=True).hidden_states[-1][:, -1]
    return state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """New weights depend on the seed only, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
