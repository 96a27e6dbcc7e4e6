"""Transformers image classifiers as the audit sees them: pixels in [0, 1] go in, logits come out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from xvision.errors import ModelError
from xvision.models.attention_mode import PrefixRows
from xvision.models.base import hash_weights, two_sided
from xvision.models.feature_maps import FeatureReader
from xvision.models.layers import fed, input_of, layers_name, outputs_of, put_back, skipped, with_rows
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.llm.config import MULTILABEL, LlmImageClassifierConfig
from xvision.models.llm.text import NOTHING, TextVocabulary
from xvision.models.loading import DAMAGE, reason
from xvision.models.prefix import clean_pass, require_same, suffix_pass
from xvision.models.preprocessing import RESAMPLE, Preprocessing
from xvision.models.protocols import Access, Attention, InputSpec, Prefix, TokenMap
from xvision.models.token_passes import body_of_places, places_of
from xvision.models.tokens import Layout, layout_of, token_map

# Facts of the saving, not of the model: the same weights saved twice keep their fingerprint.
_VOLATILE = frozenset({"transformers_version", "architectures", "dtype", "torch_dtype", "name_or_path"})


class HuggingFaceClassifier(FeatureReader):
    """Any ``AutoModelForImageClassification`` with its preprocessing; a Classifier, EmbeddingClassifier and FeatureClassifier.

    The module is taken over: evaluation mode, parameters frozen, float32. A head with one output z, read as the
    log-odds of its class, becomes the two logits (0, z).
    """

    access: Access = "white-box"

    def __init__(
        self, module: PreTrainedModel, preprocessing: Preprocessing, *, source: str, notes: tuple[str, ...] = ()
    ) -> None:
        self.module = module.float().eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self._outputs = _probe(self.module, preprocessing)
        self.classes = _classes(module, self._outputs)
        self._source, self._notes = source, notes
        self._text: torch.Tensor | None = None

    @property
    def multilabel(self) -> bool:
        return _is_multilabel(self.module, self._outputs)

    @property
    def input(self) -> InputSpec:
        return self.preprocessing.input

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, configuration and preprocessing, of the module as it is now: read it once, it is slow."""
        return fingerprint(self.module, self.preprocessing)

    @property
    def description(self) -> dict[str, str | int]:
        """Facts for the report: architecture, backbone, layers, parameters, source and what was assumed."""
        config = self.module.config
        text = getattr(config, "text_config", None) if isinstance(self.module, LlmImageClassifier) else None
        body = text or getattr(config, "vision_config", config)
        facts = {**self._facts(type(self.module).__name__, self._source), "backbone": str(body.model_type)}
        if isinstance(getattr(body, "num_hidden_layers", None), int):
            facts["layers"] = body.num_hidden_layers
        notes = (*self.preprocessing.notes, *self._notes, *_label_notes(self.classes), *_text_notes(self.module))
        return {**facts, "notes": "; ".join(notes)} if notes else facts

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in float32 for pixels (B, C, H, W) in [0, 1]; raises ModelError for another shape."""
        return two_sided(self._passed(pixels).logits)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the last linear layer reads (B, D): after the final normalisation and pooling, before the head."""
        seen: list[torch.Tensor] = []
        hook = _head(self.module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._passed(pixels)
        finally:
            hook.remove()
        return seen[0].flatten(1)

    @property
    def takes_text(self) -> bool:
        """Whether clinical text can be bound; a model without a bound text reads the image alone."""
        return isinstance(self.module, LlmImageClassifier) and self.module.config.text_tokens > 0

    def with_text(self, texts: Sequence[str]) -> HuggingFaceClassifier:
        """The same model reading one text before every image, or one before each when there are as many as images.

        Bind a single text wherever images are repeated or cut into parts. Raises ModelError for a model without text.
        """
        rows = _vocabulary(self.module).encode(texts).rows
        used = rows[:, (rows != NOTHING).any(axis=0)]  # one text is read without padding
        bound = copy(self)
        bound._bind(torch.from_numpy(np.ascontiguousarray(used)).to(self.device))
        return bound

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of the texts have more tokens than the model reads: it reads their beginning only."""
        return _vocabulary(self.module).encode(texts).cut

    @property
    def words(self) -> tuple[str, ...]:
        """The bound text, one word or piece per text token; empty without one. Raises ModelError for several texts."""
        if self._text is None:
            return ()
        if len(self._text) > 1:
            raise ModelError(f"{len(self._text)} texts are bound: bind one to read its words.")
        return _vocabulary(self.module).words(self._text[0].tolist())

    def _bind(self, text: torch.Tensor) -> None:
        self._text = text

    def _passed(self, pixels: torch.Tensor, *, attentions: bool = False) -> Any:
        asked: dict[str, Any] = {"output_attentions": True} if attentions else {}
        if self._text is not None:
            asked["text"] = self._expanded(self._text, len(pixels))
        return self.module(pixel_values=self.preprocessing.normalise(self._checked(pixels)), **asked)

    def _expanded(self, text: torch.Tensor, images: int) -> torch.Tensor:
        if len(text) not in (1, images):
            raise ModelError(
                f"{len(text)} texts are bound but there are {images} images: bind one text for all of them, or one each."
            )
        return text.expand(images, -1)


class HuggingFaceAttentionClassifier(HuggingFaceClassifier):
    """A classifier of a family whose tokens are known; also an AttentionClassifier and a PrefixClassifier.

    A learned prefix has a place in the sequence but no states: its rows of ``embedded`` and ``hidden`` are zeros, which
    nothing reads.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        preprocessing: Preprocessing,
        layout: Layout,
        *,
        source: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(module, preprocessing, source=source, notes=notes)
        self._layout, self._tokens = layout, token_map(layout)
        self._layers_name: str | None = None
        self._resumes = False

    @property
    def token_map(self) -> TokenMap:
        """Which token is which. Raises ModelError for bound texts of different lengths: no one map is theirs."""
        if self._text is not None and bool((self._text == NOTHING).any()):
            raise ModelError("The bound texts have different lengths: bind one text to read attention or tokens.")
        return self._tokens

    def attention(self, pixels: torch.Tensor) -> Attention:
        """Post-softmax attention and states of every layer, in the autograd graph, and the logits of the same pass.

        Memory grows as B × L × A × T². Raises ModelError when a layer yields no weights or no states, or weights that
        contradict the token map, and for bound texts of different lengths.
        """
        tokens, layers, prefix = self.token_map, self._layers(required=False), self._layout.sources
        # The parameters are frozen, so the graph has to start at the pixels.
        start = pixels if pixels.requires_grad else pixels.detach().requires_grad_()
        rows = PrefixRows(prefix)
        with _eager(self.module), outputs_of(layers, prefix) as states, rows if prefix else nullcontext():
            output = self._passed(start, attentions=True)
        weights = tuple(layer.float() for layer in (rows.weights if prefix else output.attentions or ()))
        self._check(weights)
        if len(states) != len(weights):
            raise self._no_layers()
        return Attention(weights, two_sided(output.logits), tokens, tuple(states))

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, T, D) float32, what the first layer reads, in the graph of the pixels. No layer is run."""
        _, layers = self.token_map, self._layers()
        with skipped(layers), input_of(layers[0]) as states:
            self._passed(pixels)
        return with_rows(states[0].float(), self._layout.sources)

    def from_embedded(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, K) for such tokens, those at ``kept`` (B, T') only; raises ModelError where a needed one is left out."""
        places, layers = places_of(tokens, kept, self.token_map), self._layers()
        prefix = self._layout.sources
        with fed(layers[0], tokens[:, prefix:]):
            return self._headed(places[:, prefix:] - prefix, layers[-1])

    @torch.inference_mode()
    def prefix(self, tokens: torch.Tensor) -> Prefix:
        """The clean pass; raises ModelError where it cannot be gone on from. That it can is tried once, on the first image."""
        places_of(tokens, None, self.token_map)
        found = clean_pass(self.module, self._layers(), tokens)
        if not self._resumes:
            start = tokens.shape[1] // 2
            other = torch.cat((tokens[:1, :start], tokens[:1, start:].roll(1, dims=1)), dim=1)
            first = torch.zeros(1, dtype=torch.int64, device=tokens.device)
            require_same(self.from_prefix(found, first, start, other[:, start:]), self.from_embedded(other))
            self._resumes = True
        return found

    @torch.inference_mode()
    def from_prefix(self, prefix: Prefix, rows: torch.Tensor, start: int, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the images rows (B,) of a clean pass with these tokens (B, T - start, D) from ``start`` on."""
        return two_sided(suffix_pass(self.module, self._layers(), prefix, rows, start, tokens))

    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the head on states (B, T, D) of any layer, after the model's last normalisation. No layer is run."""
        places, layers, prefix = places_of(hidden, None, self.token_map), self._layers(), self._layout.sources
        with skipped(layers), fed(layers[0], hidden[:, prefix:]):
            return self._headed(places[:, prefix:] - prefix, layers[-1])

    def _headed(self, places: torch.Tensor, last: nn.Module) -> torch.Tensor:
        """Logits of a pass whose first layer is fed with tokens at these places (B, T'), a prefix not counted."""
        module, spec = self.module, self.input
        if isinstance(module, LlmImageClassifier):  # reads its last token or tokens, which are kept
            prompt = (
                self._layout.before.count("virtual") - self._layout.sources
            )  # enters in the body, without positions
            body = body_of_places(module.backbone, places[:, prompt:] - prompt, module.first_position)
            return two_sided(module.decide(body.last_hidden_state))
        blank = torch.zeros(1, spec.channels, spec.height, spec.width, device=self.device)
        with put_back(last, places, len(self._tokens.names)):
            return two_sided(module(pixel_values=blank).logits)

    def _layers(self, *, required: bool = True) -> Sequence[nn.Module]:
        """The layers, first to last; none where they cannot be found and need not be."""
        if self._layers_name is None:
            grey = self.preprocessing.normalise(self._grey())
            self._layers_name = layers_name(
                self.module, int(self.description["layers"]), lambda: self.module(pixel_values=grey)
            )
        if self._layers_name is None and required:
            raise self._no_layers()
        found: Any = self.module.get_submodule(self._layers_name) if self._layers_name is not None else ()
        return tuple(found)

    def _no_layers(self) -> ModelError:
        return ModelError(
            f"The states between the layers of {type(self.module).__name__} cannot be read: use gradients of the pixels."
        )

    def _bind(self, text: torch.Tensor) -> None:
        super()._bind(text)
        layout = layout_of(self.module, self.input, text=text.shape[1])
        if layout is not None:
            self._layout, self._tokens = layout, token_map(layout)

    def _check(self, weights: tuple[torch.Tensor, ...]) -> None:
        name, layers, count = type(self.module).__name__, int(self.description["layers"]), len(self._tokens.names)
        if len(weights) != layers:
            raise ModelError(
                f"{name} gave attention for {len(weights)} of {layers} layers: use gradient methods instead."
            )
        if any(layer.shape[-2:] != (count, count) for layer in weights):
            found = tuple(weights[0].shape[-2:])
            raise ModelError(f"{name} attends over {found} tokens where its configuration means {count}.")
        forbidden = torch.from_numpy(~self._tokens.allowed).to(weights[0].device)
        if forbidden.any() and any(bool(layer[..., forbidden].any()) for layer in weights):
            raise ModelError(f"{name} attends to later tokens although its configuration says causal.")


def adapt(
    module: PreTrainedModel, preprocessing: Preprocessing, *, source: str, notes: tuple[str, ...] = ()
) -> HuggingFaceClassifier:
    """The classifier for a module: with attention where its tokens are known."""
    layout = layout_of(module, preprocessing.input)
    if layout is None:
        return HuggingFaceClassifier(module, preprocessing, source=source, notes=notes)
    return HuggingFaceAttentionClassifier(module, preprocessing, layout, source=source, notes=notes)


def preprocessing_of(config: LlmImageClassifierConfig) -> Preprocessing:
    """The preprocessing that an ``LlmImageClassifier`` was built for."""
    if not isinstance(config.resample, int) or config.resample not in RESAMPLE:
        raise ModelError(f"resample is {config.resample!r}: choose one of {sorted(RESAMPLE)}.")
    spec = InputSpec(config.num_channels, config.image_size, config.image_size, RESAMPLE[config.resample])
    return Preprocessing(spec, 1.0, tuple(map(float, config.image_mean)), tuple(map(float, config.image_std)))


def fingerprint(module: PreTrainedModel, preprocessing: Preprocessing) -> str:
    """SHA-256 over every weight, the configuration with its label order, and the preprocessing numbers."""
    digest = hashlib.sha256()
    for facts in (_lasting(module.config.to_dict()), asdict(preprocessing)):
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    if isinstance(module, LlmImageClassifier) and module.vocabulary is not None:
        digest.update(module.vocabulary.content.encode())
    hash_weights(digest, module)
    return digest.hexdigest()


def _lasting(value: Any) -> Any:
    """Configuration without what changes from save to save."""
    if isinstance(value, dict):
        kept = {str(key): _lasting(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if key not in _VOLATILE and not key.startswith("_")}
    return [_lasting(item) for item in value] if isinstance(value, list | tuple) else value


@torch.no_grad()
def _probe(module: PreTrainedModel, preprocessing: Preprocessing) -> int:
    """The number of outputs, from one grey image: a model that cannot run is refused before the audit starts."""
    spec, name = preprocessing.input, type(module).__name__
    grey = torch.full((1, spec.channels, spec.height, spec.width), 0.5, device=module.device)
    try:
        logits = module(pixel_values=preprocessing.normalise(grey)).logits
    except DAMAGE as problem:
        size = f"{spec.channels} × {spec.height} × {spec.width}"
        raise ModelError(
            f"{name} does not take images of {size} as preprocessor_config.json says: {reason(problem)}"
        ) from problem
    if logits.ndim != 2:
        raise ModelError(f"{name} gives outputs of shape {tuple(logits.shape)}; a classifier gives (B, K).")
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name} gives logits that are not finite for a grey image: its weights are damaged.")
    return int(logits.shape[1])


def _classes(module: PreTrainedModel, outputs: int) -> tuple[str, ...]:
    """Class names in the order of the logits; raises ModelError for tasks and heads that cannot be audited."""
    config = module.config
    names: Any = config.id2label
    labels = tuple(str(names[index]) for index in sorted(names))
    problem = config.problem_type
    if problem == "regression":
        raise ModelError("problem_type is regression: its output is no logit, so it cannot be audited as a classifier.")
    if outputs == 1 and len(labels) == 1:
        labels = (f"not {labels[0]}", labels[0])
    if len(labels) != max(outputs, 2) or len(set(labels)) != len(labels):
        raise ModelError(
            f"The head has {outputs} outputs but config.json names the classes {list(labels)}: correct id2label."
        )
    return labels


def _is_multilabel(module: PreTrainedModel, outputs: int) -> bool:
    """Whether every output is a finding of its own."""
    return bool(module.config.problem_type == MULTILABEL) and outputs > 1


def _vocabulary(module: PreTrainedModel) -> TextVocabulary:
    found = module.vocabulary if isinstance(module, LlmImageClassifier) else None
    if not isinstance(found, TextVocabulary):
        raise ModelError(f"{type(module).__name__} reads no text: it was trained on images alone.")
    return found


def _text_notes(module: PreTrainedModel) -> tuple[str, ...]:
    longest = module.config.text_tokens if isinstance(module, LlmImageClassifier) else 0
    note = f"reads up to {longest} tokens of the column text before the image, and the image alone where there is none"
    return (note,) if longest else ()


def _label_notes(classes: tuple[str, ...]) -> tuple[str, ...]:
    generic = [name for name in classes if name.removeprefix("not ").startswith("LABEL_")]
    return (f"the classes have no names ({', '.join(generic)}): their meaning is assumed",) if generic else ()


def _head(module: PreTrainedModel) -> nn.Linear:
    found = [part for part in getattr(module, "classifier", nn.Identity()).modules() if isinstance(part, nn.Linear)]
    if not found:
        raise ModelError(f"{type(module).__name__} has no linear head named classifier: its embeddings cannot be read.")
    return found[-1]


@contextmanager
def _eager(module: PreTrainedModel) -> Iterator[None]:
    """Attention that is computed openly; the previous implementation comes back whatever happens."""
    parts = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    before = [part.config._attn_implementation for part in parts]
    try:
        for part in parts:
            part.config._attn_implementation = "eager"
        yield
    finally:
        for part, name in zip(parts, before, strict=True):  # outer models first: setting one resets those inside it
            part.config._attn_implementation = name
