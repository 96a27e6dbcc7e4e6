"""Shape and preprocessing of an ``LlmImageClassifier``, as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ImagesKwargs

from xvision.errors import ModelError

AttentionMode = Literal["causal", "bidirectional"]
Stem = Literal["conv", "linear"]
Readout = Literal["last", "mean"]


class LlmImageClassifierConfig(PreTrainedConfig):
    """Shape of an ``LlmImageClassifier``, and the preprocessing it was trained with.

    text_config: configuration of the backbone. image_mean, image_std: per channel, applied to pixels in [0, 1].
    resample: Pillow's number of the filter. readout: "last" reads a token appended to the patches, "mean" averages
    the patches' last hidden states.
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
        """T, image tokens and the read-out."""
        return self.patches + (self.readout == "last")


def _set_attention(text: PreTrainedConfig, attention: AttentionMode) -> None:
    """Decoders obey ``is_causal``, encoders of the BERT family ``is_decoder``."""
    text.is_causal = attention == "causal"
    if hasattr(text, "is_decoder"):
        text.is_decoder = attention == "causal"
    text.use_cache = False


def _check(config: LlmImageClassifierConfig) -> None:
    choices = {"stem": ("conv", "linear"), "attention": ("causal", "bidirectional"), "readout": ("last", "mean")}
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
    _check_body(config)


def _check_body(config: LlmImageClassifierConfig) -> None:
    if config.text_config.is_encoder_decoder:
        raise ModelError(
            f"{config.text_config.model_type} is an encoder with a decoder: choose one with a single body."
        )
    longest = getattr(config.text_config, "max_position_embeddings", None) or config.tokens
    if config.tokens > longest:
        raise ModelError(
            f"The image makes {config.tokens} tokens but the backbone has {longest} positions: "
            "choose larger patches or a smaller image."
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
