"""Image patches in, the body of a language model in the middle, class logits out.

patches → stem → row and column positions → any transformers text backbone → read-out token, placed last → LayerNorm →
linear head. The read-out comes last so that one token order serves causal and bidirectional attention alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from xvision.errors import ModelError, nearest
from xvision.models.llm_config import AttentionMode, LlmImageClassifierConfig, Readout, Stem
from xvision.models.loading import load_text_backbone


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position: unlike norms over the image, it carries nothing across patches."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class PatchStem(nn.Module):
    """Pixels (B, C, H, W) to image tokens (B, P, D), row by row.

    "linear" is one matrix per patch; "conv" halves the image log2(patch) times, which learns small local structure in
    far fewer steps (Xiao et al., 2021). Its 4 × 4 filters keep each token centred on its patch; it sees one patch width
    less a pixel beyond.
    """

    def __init__(self, channels: int, patch: int, width: int, kind: Stem) -> None:
        super().__init__()
        if kind == "linear":
            self.project = nn.Sequential(nn.Conv2d(channels, width, patch, stride=patch))
        else:
            halvings = patch.bit_length() - 1
            widths = [channels, *(max(8, width >> (halvings - 1 - step)) for step in range(halvings))]
            self.project = nn.Sequential(*_halvings(widths))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.norm(self.project(pixels).flatten(2).transpose(1, 2))
        return tokens


def _halvings(widths: Sequence[int]) -> Iterator[nn.Module]:
    for number, (before, after) in enumerate(pairwise(widths)):
        if number:
            yield ChannelNorm(before)
            yield nn.GELU()
        yield nn.Conv2d(before, after, 4, stride=2, padding=1)


class GridPositions(nn.Module):
    """Adds a learned row and a learned column vector to each image token: raster order alone is not two-dimensional."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.row = nn.Embedding(side, width)
        self.column = nn.Embedding(side, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        grid = self.row.weight[:, None] + self.column.weight[None, :]
        return tokens + grid.reshape(self.side**2, -1)


class LlmImageClassifier(PreTrainedModel):
    """An image classifier whose body is a language model; takes normalised pixels, as every transformers model does.

    The vocabulary is gone but for one row, which is the read-out token. Loading pretrained text weights is
    ``from_backbone``; ``from_pretrained`` loads a saved classifier.
    """

    config_class = LlmImageClassifierConfig
    config: LlmImageClassifierConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012  # the type that transformers declares
    accepts_loss_kwargs = False  # the loss is a plain mean: Trainer must divide it by its accumulation steps
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: LlmImageClassifierConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.text_config)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # reads the first token; the read-out here is another
        width = self.backbone.get_input_embeddings().embedding_dim
        self.backbone.set_input_embeddings(nn.Embedding(1, width))
        if config.readout == "mean":
            self.backbone.get_input_embeddings().requires_grad_(False)
        self.stem = PatchStem(config.num_channels, config.patch_size, width, config.stem)
        self.positions = GridPositions(config.image_size // config.patch_size, width)
        self.cls_norm = nn.LayerNorm(config.text_config.hidden_size)
        self.classifier = nn.Linear(config.text_config.hidden_size, len(config.classes))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
            init.zeros_(bias)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ImageClassifierOutput:
        """Logits (B, K) of normalised pixels (B, C, H, W); with labels (B,) also their mean cross-entropy."""
        tokens = self.positions(self.stem(pixel_values))
        if self.config.readout == "last":
            readout = self.backbone.get_input_embeddings().weight.expand(len(tokens), 1, -1)
            tokens = torch.cat((tokens, readout), dim=1)
        body = self.backbone(
            inputs_embeds=tokens, output_attentions=output_attentions, output_hidden_states=output_hidden_states
        )
        hidden = body.last_hidden_state
        pooled = hidden[:, -1] if self.config.readout == "last" else hidden.mean(dim=1)
        logits = self.classifier(self.cls_norm(pooled))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=body.hidden_states, attentions=body.attentions
        )

    @classmethod
    def from_backbone(
        cls,
        path_or_id: str | Path,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        classes: Sequence[str],
        attention: AttentionMode = "causal",
        stem: Stem = "conv",
        readout: Readout = "last",
        seed: int,
    ) -> LlmImageClassifier:
        """A classifier with the pretrained weights of a text model from a local folder or the hub; the rest is new.

        The read-out starts as the mean word and image tokens start as large as words are. Raises ModelError when the
        folder is refused, holds no plain text model, lacks weights, or cannot attend as asked.
        """
        text = load_text_backbone(path_or_id)
        config = LlmImageClassifierConfig(
            text_config=text.config, image_size=image_size, patch_size=patch_size, num_channels=channels,
            attention=attention, stem=stem, readout=readout, **_labels(classes),
        )  # fmt: skip
        with _seeded(seed):
            model = cls(config)
        _transplant(text, model)
        _check_attention(model)
        return model.eval()


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ModelError(f"The classes are {list(classes)}: give at least two different names.")
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


@torch.no_grad()
def _transplant(text: Any, model: LlmImageClassifier) -> None:
    """Every weight of the text model but its vocabulary and pooler, which a classifier of images has no use for."""
    words, readout = text.get_input_embeddings(), model.backbone.get_input_embeddings()
    vocabulary = words(torch.arange(words.num_embeddings))
    readout.weight.copy_(vocabulary.mean(dim=0, keepdim=True))
    model.stem.norm.weight.fill_(vocabulary.std())
    text.set_input_embeddings(readout)
    if hasattr(text, "pooler"):
        text.pooler = None
    model.backbone.load_state_dict(text.state_dict())


@torch.no_grad()
def _check_attention(model: LlmImageClassifier) -> None:
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


def preset(
    name: str,
    *,
    image_size: int = 64,
    patch_size: int = 8,
    channels: int = 1,
    classes: Sequence[str] = ("normal", "lesion"),
    attention: AttentionMode = "causal",
    stem: Stem = "conv",
    readout: Readout = "last",
    seed: int,
) -> LlmImageClassifier:
    """A tiny classifier with random weights: "tiny-qwen3", "tiny-gpt2" or "tiny-bert", each about 130,000 parameters.

    Small enough to train in a minute on one CPU thread, with every part of the large ones.
    """
    bodies = _tiny_bodies((image_size // max(patch_size, 1)) ** 2 + 1)
    if name not in bodies:
        raise ModelError(f"There is no preset {name!r}. {nearest(name, bodies)}")
    config = LlmImageClassifierConfig(
        text_config=bodies[name], image_size=image_size, patch_size=patch_size, num_channels=channels,
        attention=attention, stem=stem, readout=readout, **_labels(classes),
    )  # fmt: skip
    with _seeded(seed):
        return LlmImageClassifier(config).eval()


def _tiny_bodies(tokens: int) -> dict[str, PreTrainedConfig]:
    """One read-out row for a vocabulary, no dropout, no special tokens.

    Without the norms that Qwen3 has on queries and keys, the usual 0.02 is too small at width 64: attention stays flat
    and the network learns nothing.
    """
    scale = 64**-0.5
    return {
        "tiny-qwen3": Qwen3Config(
            vocab_size=1, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=tokens, bos_token_id=None, eos_token_id=None,
        ),
        "tiny-gpt2": GPT2Config(
            vocab_size=1, n_embd=64, n_layer=2, n_head=4, n_positions=tokens, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, initializer_range=scale,
        ),
        "tiny-bert": BertConfig(
            vocab_size=1, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=tokens, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            pad_token_id=None, initializer_range=scale,
        ),
    }  # fmt: skip


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """New weights depend on the seed only, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


AutoModelForImageClassification.register(LlmImageClassifierConfig, LlmImageClassifier)
