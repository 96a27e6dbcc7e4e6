"""Image patches in, the body of a language model in the middle, class logits out.

clinical text (optional) → patches → stem → row and column positions → any transformers text backbone → read-out token,
placed last → head. The read-out comes last so that one token order serves causal and bidirectional attention alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from xvision.errors import ModelError, nearest
from xvision.models.folder import open_folder
from xvision.models.llm.adapters import attach_configured
from xvision.models.llm.backbone import check_attention, check_padding, first_position, seeded, transplant
from xvision.models.llm.config import (
    AttentionMode,
    Head,
    LlmImageClassifierConfig,
    Readout,
    Stem,
    check_length,
    label_facts,
)
from xvision.models.llm.presets import tiny_bodies
from xvision.models.llm.stem import GridPositions, PatchStem
from xvision.models.llm.text import TextVocabulary, read_tokenizer, word_ids
from xvision.models.loading import load_text_backbone


class LlmImageClassifier(PreTrainedModel):
    """An image classifier whose body is a language model; takes normalised pixels, as every transformers model does.

    Of the vocabulary there remain the read-out token and, for a model that reads text, the words of its training texts:
    ``vocabulary`` turns texts into rows. Loading pretrained text weights is ``from_backbone``; ``from_pretrained``
    loads a saved classifier.
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
        self.vocabulary: TextVocabulary | None = None
        self.backbone = AutoModel.from_config(config.text_config)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # reads the first token; the read-out here is another
        width, hidden = self.backbone.get_input_embeddings().embedding_dim, config.text_config.hidden_size
        # Row 0 is the read-out, row 1 the unknown word, then the words of text_ids.
        rows = 2 + len(config.text_ids) if config.text_tokens else 1
        self.backbone.set_input_embeddings(nn.Embedding(rows, width))
        if config.readout == "mean" and not config.text_tokens:
            self.backbone.get_input_embeddings().requires_grad_(False)
        self._first_position, positions = first_position(self.backbone)
        check_length(config, positions or config.tokens)
        self.stem = PatchStem(config.num_channels, config.patch_size, width, config.stem)
        self.positions = GridPositions(config.image_size // config.patch_size, width)
        linear = config.head == "linear"
        self.cls_norm = nn.LayerNorm(hidden) if linear else nn.Identity()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(hidden, len(config.classes), bias=linear)
        self.post_init()
        attach_configured(self)

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
        text: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ImageClassifierOutput:
        """Logits (B, K) of normalised pixels (B, C, H, W); with labels also their mean loss.

        labels: (B,) class indices for cross-entropy, or (B, K) zeros and ones for a multi-label model, each finding
        with its own binary cross-entropy. text: (B, T) rows of the vocabulary, left-padded with −1, T at most
        ``config.text_tokens``; None is no text. A place with −1 is masked and takes no position, so that a text means
        the same however long the others are. Raises ModelError for text that the model has no place for.
        """
        text = self._read(text)
        tokens = self._tokens(pixel_values, text)
        body = self.backbone(
            inputs_embeds=tokens, **self._padding(tokens, text), output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )  # fmt: skip
        logits = self.decide(body.last_hidden_state)
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=body.hidden_states,
            attentions=getattr(body, "attentions", None),  # a body without attention has none
        )

    def decide(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the body's last states (B, T, D)."""
        last = self.config.readout == "last"
        pooled = hidden[:, -1] if last else hidden[:, -self.config.patches :].mean(dim=1)
        logits: torch.Tensor = self.classifier(self.dropout(self.cls_norm(pooled)))
        return logits

    @property
    def first_position(self) -> int:
        """The number of the first position."""
        return self._first_position

    def _read(self, text: torch.Tensor | None) -> torch.Tensor | None:
        places = 0 if text is None else text.shape[1]
        if places > self.config.text_tokens:
            raise ModelError(
                f"The text has {places} tokens but the model has places for {self.config.text_tokens} (text_tokens): "
                "shorten it, or train a model with more."
            )
        return text if places else None

    def _tokens(self, pixel_values: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        tokens = self.positions(self.stem(pixel_values))
        words = self.backbone.get_input_embeddings()
        parts = [] if text is None else [words(text + 1)]
        parts.append(tokens)
        if self.config.readout == "last":
            parts.append(words.weight[:1].expand(tokens.shape[0], 1, -1))  # len() would fix the batch in an export
        return torch.cat(parts, dim=1)

    def _padding(self, tokens: torch.Tensor, text: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Without text nothing is masked, and no mask is the fastest mask."""
        if text is None:
            return {}
        present = tokens.new_ones(tokens.shape[:2], dtype=torch.long)
        present[:, : text.shape[1]] = text >= 0
        places = (present.cumsum(dim=1) - 1).clamp(min=0)
        return {"attention_mask": present, "position_ids": places + self._first_position}

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.config.multilabel:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)

    def save_pretrained(self, save_directory: str | PathLike[Any], *args: Any, **kwargs: Any) -> None:
        """As transformers saves, and tokenizer.json beside it for a model that reads text."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.config.text_tokens:
            if self.vocabulary is None:
                raise ModelError("The model reads text but has no vocabulary to save: set model.vocabulary.")
            self.vocabulary.save(Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers loads, with the vocabulary of a model that reads text."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.text_tokens:
            folder = open_folder(pretrained_model_name_or_path)
            model.vocabulary = TextVocabulary.read(folder, model.config.text_ids, model.config.text_tokens)
        return loaded

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
        head: Head = "linear",
        label_words: Mapping[str, str] | None = None,
        multilabel: bool = False,
        dropout: float = 0.0,
        text_tokens: int = 0,
        texts: Sequence[str] = (),
        seed: int,
    ) -> LlmImageClassifier:
        """A classifier with the pretrained weights of a text model from a local folder or the hub; the rest is new.

        The read-out starts as the mean word and image tokens start as large as words are. With the head "label words"
        the logits start as the model's own next-word logits of those words. texts: the training texts, whose tokens
        are kept when ``text_tokens`` is above 0. Raises ModelError when the folder is refused, holds no plain text
        model, lacks weights, cannot attend as asked, or when a label word is not one token.
        """
        text = load_text_backbone(path_or_id, output=head == "label words")
        facts = label_facts(classes, label_words or {}, head, multilabel=multilabel)
        words = facts["label_words"]
        rows = word_ids(read_tokenizer(text.folder), words).values() if words else ()
        vocabulary = TextVocabulary.of_tokens(read_tokenizer(text.folder), texts, text_tokens) if text_tokens else None
        config = LlmImageClassifierConfig(
            text_config=text.body.config, image_size=image_size, patch_size=patch_size, num_channels=channels,
            attention=attention, stem=stem, readout=readout, classifier_dropout=dropout, text_tokens=text_tokens,
            text_ids=list(vocabulary.ids) if vocabulary else None, **facts,
        )  # fmt: skip
        with seeded(seed):
            model = cls(config)
        model.vocabulary = vocabulary
        transplant(text, model, rows)
        check_attention(model)
        if vocabulary:
            check_padding(model)
        return model.eval()


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
    head: Head = "linear",
    label_words: Mapping[str, str] | None = None,
    multilabel: bool = False,
    dropout: float = 0.0,
    text_tokens: int = 0,
    texts: Sequence[str] = (),
    seed: int,
) -> LlmImageClassifier:
    """A tiny classifier with random weights: "tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2" or "tiny-bert".

    Each has about 130,000 parameters: small enough to train in a minute on one CPU thread, with every part of the large
    ones. The words of the texts and the label words are new, too: they mean what training makes of them.
    """
    places = text_tokens + (image_size // max(patch_size, 1)) ** 2 + 1
    bodies = tiny_bodies(places)
    if name not in bodies:
        raise ModelError(f"There is no preset {name!r}. {nearest(name, bodies)}")
    vocabulary = TextVocabulary.of_words(texts, text_tokens) if text_tokens else None
    config = LlmImageClassifierConfig(
        text_config=bodies[name], image_size=image_size, patch_size=patch_size, num_channels=channels,
        attention=attention, stem=stem, readout=readout, classifier_dropout=dropout, text_tokens=text_tokens,
        text_ids=list(vocabulary.ids) if vocabulary else None,
        **label_facts(classes, label_words or {}, head, multilabel=multilabel),
    )  # fmt: skip
    with seeded(seed):
        model = LlmImageClassifier(config)
    model.vocabulary = vocabulary
    return model.eval()


AutoModelForImageClassification.register(LlmImageClassifierConfig, LlmImageClassifier)
