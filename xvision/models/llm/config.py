"""Shape and preprocessing of an ``LlmImageClassifier``, as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ImagesKwargs

from xvision.errors import ModelError, nearest
from xvision.models.llm.adapters import read_adapter

AttentionMode = Literal["causal", "bidirectional"]
Stem = Literal["conv", "linear"]
Readout = Literal["last", "mean"]
Head = Literal["linear", "label words"]
MULTILABEL = "multi_label_classification"


class LlmImageClassifierConfig(PreTrainedConfig):
    """Shape of an ``LlmImageClassifier``, and the preprocessing it was trained with.

    text_config: configuration of the backbone. image_mean, image_std: per channel, applied to pixels in [0, 1].
    resample: Pillow's number of the filter. readout: "last" reads a token appended to the patches, "mean" averages
    the patches' last hidden states. head: "linear", or "label words", which reads the language model's own
    distribution over ``label_words`` (class → word, one for each class). classifier_dropout: on what the head reads.
    text_tokens: places for clinical text before the image; text_ids: the tokens of tokenizer.json that its vocabulary
    keeps. problem_type "multi_label_classification" makes every class a finding of its own. adapter: weights added to the
    backbone, as ``xvision.models.llm.adapters`` reads them.
    """

    model_type = "xvision-llm"
    sub_configs: ClassVar[Mapping[str, type]] = {"text_config": AutoConfig}
    has_no_defaults_at_init = True

    text_config: Any = None
    image_size: int = 64
    patch_size: int = 8
    num_channels: int = 1
    stem: Stem = "conv"
    attention: AttentionMode = "causal"
    readout: Readout = "last"
    head: Head = "linear"
    label_words: Any = None
    classifier_dropout: float = 0.0
    text_tokens: int = 0
    text_ids: Any = None
    adapter: Any = None
    image_mean: Any = None
    image_std: Any = None
    resample: int = 2

    def __post_init__(self, **kwargs: Any) -> None:  # transformers hands over the keys it does not know
        if self.text_config is None:
            raise ModelError("LlmImageClassifierConfig needs text_config, the configuration of the language model.")
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        _set_attention(self.text_config, self.attention)
        self.image_mean = list(self.image_mean or [0.5] * self.num_channels)
        self.image_std = list(self.image_std or [0.5] * self.num_channels)
        super().__post_init__(**kwargs)
        _check(self)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        names: Any = self.id2label
        return tuple(names[index] for index in range(len(names)))

    @property
    def patches(self) -> int:
        """P, the number of image tokens."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """T at its longest: text, image tokens and the read-out."""
        return self.text_tokens + self.patches + (self.readout == "last")

    @property
    def multilabel(self) -> bool:
        """Whether every class is a finding of its own: any number of them may be present."""
        return bool(self.problem_type == MULTILABEL)


def label_facts(classes: Sequence[str], words: Mapping[str, str], head: Head, *, multilabel: bool) -> dict[str, Any]:
    """What a configuration says of its classes; a class without a label word of its own is its own word."""
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ModelError(f"The classes are {list(classes)}: give at least two different names.")
    if strange := sorted(set(words) - set(classes)):
        raise ModelError(f"label_words names {strange[0]!r}, which is no class. {nearest(strange[0], classes)}")
    if words and head != "label words":
        raise ModelError('label_words were given for a linear head: set head to "label words" or leave them out.')
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: index for index, name in enumerate(classes)},
        "problem_type": MULTILABEL if multilabel else None,
        "head": head,
        "label_words": {name: words.get(name, name) for name in classes} if head == "label words" else None,
    }


def _set_attention(text: PreTrainedConfig, attention: AttentionMode) -> None:
    """Decoders obey ``is_causal``, encoders of the BERT family ``is_decoder``."""
    text.is_causal = attention == "causal"
    if hasattr(text, "is_decoder"):
        text.is_decoder = attention == "causal"
    text.use_cache = False


def _check(config: LlmImageClassifierConfig) -> None:
    choices = {
        "stem": ("conv", "linear"), "attention": ("causal", "bidirectional"), "readout": ("last", "mean"),
        "head": ("linear", "label words"),
    }  # fmt: skip
    for key, known in choices.items():
        if getattr(config, key) not in known:
            raise ModelError(f"{key} is {getattr(config, key)!r}: choose one of {', '.join(known)}.")
    size, patch = config.image_size, config.patch_size
    if min(size, patch) < 1 or size % patch:
        raise ModelError(f"image_size {size} is not a multiple of patch_size {patch}: change one of them.")
    if config.stem == "conv" and (patch < 2 or patch & (patch - 1)):
        raise ModelError(f"The conv stem halves the image again and again, so patch_size {patch} must be a power of 2.")
    for key in ("image_mean", "image_std"):
        values = getattr(config, key)
        if len(values) != config.num_channels or not all(isinstance(value, int | float) for value in values):
            raise ModelError(f"{key} is {values}: give {config.num_channels} numbers, one for each channel.")
    if not 0 <= config.classifier_dropout < 1:
        raise ModelError(f"classifier_dropout is {config.classifier_dropout}: give a share from 0 to below 1.")
    _check_labels(config)
    _check_text(config)
    _check_body(config)
    if config.adapter is not None:
        read_adapter(config.adapter)


def _check_labels(config: LlmImageClassifierConfig) -> None:
    names: Any = config.id2label
    if sorted(names) != list(range(len(names))) or len(set(names.values())) != len(names):
        raise ModelError(f"id2label is {names}: number different names 0, 1, 2, … in the order of the outputs.")
    if config.head == "linear":
        return
    if config.readout != "last":
        raise ModelError('The head "label words" reads one token, the last: set readout to "last".')
    words = config.label_words
    if not isinstance(words, dict) or set(words) != set(config.classes):
        missing = [name for name in config.classes if not isinstance(words, dict) or name not in words]
        what = (
            f"has no word for the class {missing[0]!r}"
            if missing
            else f"names {sorted(set(words) - set(config.classes))}"
        )
        raise ModelError(f"label_words {what}: give one word for each of {', '.join(config.classes)}, and no other.")
    if not all(isinstance(word, str) and word.strip() for word in words.values()) or len(set(words.values())) < len(
        words
    ):
        raise ModelError(f"label_words are {words}: give every class a word of its own.")


def _check_text(config: LlmImageClassifierConfig) -> None:
    length, ids = config.text_tokens, config.text_ids
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise ModelError(f"text_tokens is {length!r}: give 0, or how many tokens of text are read before the image.")
    if length and not (isinstance(ids, list) and ids and all(type(number) is int for number in ids)):
        raise ModelError("text_tokens asks for text, but text_ids does not say which tokens the vocabulary keeps.")
    if ids and not length:
        raise ModelError("text_ids keeps a vocabulary, but text_tokens is 0: set both or neither.")


def _check_body(config: LlmImageClassifierConfig) -> None:
    if config.text_config.is_encoder_decoder:
        raise ModelError(
            f"{config.text_config.model_type} is an encoder with a decoder: choose one with a single body."
        )
    positions = getattr(config.text_config, "max_position_embeddings", None)
    check_length(config, positions if isinstance(positions, int) and positions > 0 else config.tokens)


def check_length(config: LlmImageClassifierConfig, positions: int) -> None:
    """ModelError when text, image and read-out together are longer than the backbone's context."""
    if config.tokens > positions:
        text = f" with {config.text_tokens} tokens of text" if config.text_tokens else ""
        shorter = "shorter text (text_tokens), " if text else ""
        raise ModelError(
            f"The image{text} makes {config.tokens} tokens but the backbone has {positions} positions: "
            f"choose {shorter}larger patches or a smaller image."
        )


class LlmImageProcessorKwargs(ImagesKwargs, total=False):
    do_grayscale: bool


class LlmImageProcessor(PilBackend):
    """Pillow-only image processor of ``LlmImageClassifier``; torchvision is never needed."""

    valid_kwargs = LlmImageProcessorKwargs
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_grayscale = False

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: Any = None,
        **settings: Any,  # the base class hands over every setting
    ) -> np.ndarray:
        if isinstance(image, Image.Image):
            image = image.convert("L" if settings.get("do_grayscale") else "RGB")
        return super().process_image(image, input_data_format=input_data_format)


def image_processor(config: LlmImageClassifierConfig) -> LlmImageProcessor:
    """The processor that belongs to a model; saved beside it."""
    return LlmImageProcessor(
        size={"height": config.image_size, "width": config.image_size},
        resample=config.resample,
        image_mean=config.image_mean,
        image_std=config.image_std,
        do_grayscale=config.num_channels == 1,  # type: ignore[call-arg]  # declared in valid_kwargs
    )


AutoConfig.register(LlmImageClassifierConfig.model_type, LlmImageClassifierConfig)
AutoImageProcessor.register(LlmImageClassifierConfig, image_processor_classes={"pil": LlmImageProcessor})
