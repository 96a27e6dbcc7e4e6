"""Ready-made vision-language models as classifiers: a class scores as its words do after a prompt with the image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from xvision.config import PromptPlan
from xvision.errors import ConfigError, ModelError
from xvision.models.base import ModuleClassifier
from xvision.models.folder import read_config
from xvision.models.huggingface import fingerprint
from xvision.models.loading import DAMAGE, check_model_type, load_weights, reason
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import Access, InputSpec
from xvision.models.vlm.families import ImageFamily, family_of, image_token_count, preprocessing_for
from xvision.models.vlm.prompts import Question, check_labels, read_question
from xvision.models.vlm.scoring import normalise, score_naive, score_shared, unpadded
from xvision.models.vlm.text import Asked, TextSide, ask, read_text_side, refuse_openings

TOLERANCE = 1e-3
"""Largest difference of log-probabilities, shared against naive, at load: rounding stays far below, wrong masks above."""
TESTED = ("llava", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families whose scores and gradients are tested; others are checked when they are loaded."""
_NOISE_SEED = 0


class Loading(NamedTuple):
    """What the check at load found: the largest difference to naive scoring, and whether pixels have gradients."""

    difference: float
    access: Access


class VlmClassifier(ModuleClassifier):
    """A vision-language model asked one question; a Classifier, an EmbeddingClassifier and a RandomisableClassifier.

    Logits are label scores (log-probabilities of the words, normalised as the plan says) over the temperature; their
    softmax is a distribution over the given labels only and is not calibrated. The module is taken over: evaluation
    mode, parameters frozen, float32.
    """

    def __init__(
        self, module: PreTrainedModel, preprocessing: Preprocessing, family: ImageFamily, asked: Asked,
        plan: PromptPlan, *, side: TextSide, source: str, loading: Loading, notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.module = module.float().eval().requires_grad_(False)
        self.preprocessing, self.family, self.asked, self.plan = preprocessing, family, asked, plan
        self.classes = tuple(plan.labels)
        self.access: Access = loading.access
        self._side = side
        self._source, self._loading, self._notes = source, loading, notes
        self._prior = self._without_content() if plan.normalise == "pmi" else None

    @property
    def input(self) -> InputSpec:
        return self.preprocessing.input

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, configuration, preprocessing, prompt and labels: read it once, it is slow."""
        facts = [
            fingerprint(self.module, self.preprocessing), self.asked.text, list(self.asked.tokens),
            [list(tail) for tail in self.asked.tails], list(self.classes), self.plan.normalise, self.plan.temperature,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def description(self) -> dict[str, str | int]:
        """Facts for the report: architecture, backbone, parameters, source, the prompt and how it was scored."""
        text = self.module.config.get_text_config()
        facts = {
            **self._facts(type(self.module).__name__, self._source),
            "backbone": str(text.model_type),
            "prompt": self.asked.text,
            "labels": "; ".join(f"{name}: {words.strip()}" for name, words in self.plan.labels.items()),
        }
        if isinstance(getattr(text, "num_hidden_layers", None), int):
            facts["layers"] = text.num_hidden_layers
        return {**facts, "notes": "; ".join((_how(self.plan, self._loading), *self.preprocessing.notes, *self._notes))}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in float32 for pixels (B, C, H, W) in [0, 1]; raises ModelError for another shape."""
        scores = normalise(self.scores(pixels), self._lengths, self.plan.normalise, self._prior)
        return scores / self.plan.temperature

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, K) of the label words, before normalisation and temperature."""
        seen = self.preprocessing.normalise(self._checked(pixels))
        prompt = unpadded(self.asked.tokens, len(seen), seen.device)
        return score_shared(self.module, self.family, seen, prompt, self.asked.tails)

    def naive_scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same by a full pass for every label, as a check; K times the work."""
        seen = self.preprocessing.normalise(self._checked(pixels))
        tokens = unpadded(self.asked.tokens, len(seen), seen.device).tokens
        return score_naive(self.module, self.family, seen, tokens, self.asked.tails)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the language head reads (B, D) where it decides the first word of the answer."""
        seen: list[torch.Tensor] = []
        head = self.module.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.scores(pixels)
        finally:
            hook.remove()
        return seen[0][:, -1].float()

    def randomised(self, seed: int, parts: Sequence[str] | None = None) -> Self:
        twin = super().randomised(seed, parts)
        twin._prior = twin._without_content() if self.plan.normalise == "pmi" else None
        return twin

    def with_question(self, question: Question, labels: Mapping[str, str]) -> Self:
        """The same weights asked otherwise, with other words for the same classes; scored as the plan says.

        Raises ConfigError for other classes, and for a question or words that this model cannot be asked.
        """
        if tuple(labels) != self.classes:
            raise ConfigError(
                f"found words for {list(labels)}: give some for each of {list(self.classes)}, in this order."
            )
        check_labels(labels)
        count, folder = self.asked.tokens.count(self.family.image), Path(self._source)
        asked = _asked(self._side, question, replace(self.plan, labels=labels), self.family, count, folder)
        _check_context(folder, self.module, asked)
        twin = copy(self)
        twin.asked, twin.plan = asked, replace(self.plan, labels=labels, template=question.name)
        twin._prior = twin._without_content() if self.plan.normalise == "pmi" else None
        return twin

    @property
    def _lengths(self) -> list[int]:
        return [len(tail) for tail in self.asked.tails]

    @torch.no_grad()
    def _without_content(self) -> torch.Tensor:
        return self.scores(content_free(self.preprocessing).to(self.device)).mean(0)


def is_vlm(config_class: type) -> bool:
    """Whether a folder with this configuration class holds a model of images and text that ``load_vlm`` may take."""
    return config_class in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_vlm(folder: Path, prompt: PromptPlan, device: torch.device, *, source: str | None = None) -> VlmClassifier:
    """The vision-language model in a local folder, asked as ``prompt`` says, in float32 on ``device``.

    Tokenizer and chat template are read as data; nothing comes from the network. At load the scores of two images are
    compared with naive scoring. Raises ConfigError for a prompt that cannot be asked and ModelError for a folder that
    cannot be used, or whose scores disagree.
    """
    question = read_question(prompt)
    config = read_config(folder)
    if not is_vlm(check_model_type(folder, config)):
        raise ModelError(
            f"{folder} holds a {config['model_type']} model, which takes no prompt: remove [model.prompt]."
        )
    side = read_text_side(folder)
    module, unused = load_weights(AutoModelForImageTextToText, folder)
    family = family_of(folder, module.config, side.tokenizer.id_to_token)
    preprocessing = preprocessing_for(folder, module.config)
    module = module.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]  # its decorator hides the signature
    count = _image_tokens(folder, module, family, preprocessing)
    asked = _asked(side, question, prompt, family, count, folder)
    _check_context(folder, module, asked)
    loading = _check(folder, module, preprocessing, family, asked)
    notes = (f"{len(unused)} weights of the folder are not part of the model",) if unused else ()
    return VlmClassifier(
        module,
        preprocessing,
        family,
        asked,
        prompt,
        side=side,
        source=source or str(folder),
        loading=loading,
        notes=notes,
    )


def _asked(
    side: TextSide, question: Question, plan: PromptPlan, family: ImageFamily, count: int, folder: Path
) -> Asked:
    asked = ask(side, question, plan.labels, family, count, folder)
    if plan.normalise == "sum":
        refuse_openings(plan.labels, asked.tails)
    return asked


def content_free(preprocessing: Preprocessing) -> torch.Tensor:
    """Two images without content (2, C, H, W) in [0, 1]: the training mean everywhere, and uniform noise, the same always."""
    spec = preprocessing.input
    mean = torch.tensor(preprocessing.mean) / preprocessing.scale
    grey = mean.clamp(0, 1).view(-1, 1, 1).expand(spec.channels, spec.height, spec.width)
    noise = torch.rand(spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(_NOISE_SEED))
    return torch.stack((grey, noise))


@torch.no_grad()
def _image_tokens(folder: Path, module: PreTrainedModel, family: ImageFamily, preprocessing: Preprocessing) -> int:
    grey = preprocessing.normalise(content_free(preprocessing)[:1].to(module.device))
    try:
        return image_token_count(family, module, grey)
    except DAMAGE as problem:
        raise _unusable(folder, module, preprocessing, problem) from problem


def _check(
    folder: Path, module: PreTrainedModel, preprocessing: Preprocessing, family: ImageFamily, asked: Asked
) -> Loading:
    """Shared against naive scores of the two longest labels on two images; gradients too where no test vouches for them."""
    tails = sorted(asked.tails, key=len)[-2:]
    tested = module.config.model_type in TESTED
    pixels = content_free(preprocessing).to(module.device).requires_grad_(not tested)
    seen = preprocessing.normalise(pixels)
    prompt = unpadded(asked.tokens, len(seen), seen.device)
    try:
        shared = score_shared(module, family, seen, prompt, tails)
        with torch.no_grad():
            naive = score_naive(module, family, seen, prompt.tokens, tails)
        access: Access = "white-box" if tested or _has_gradient(shared, pixels) else "black-box"
    except DAMAGE as problem:
        raise _unusable(folder, module, preprocessing, problem) from problem
    difference = float((shared.detach() - naive).abs().max())
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{folder}: a {type(module).__name__} does not score labels alike with and without a shared prompt (they "
            f"differ by {difference:.2g}), so its numbers would be wrong. Tested families: {', '.join(TESTED)}."
        )
    if torch.equal(naive[0], naive[1]):
        raise ModelError(f"{folder}: the scores are the same for every image: the image does not reach the model.")
    return Loading(difference, access)


def _has_gradient(scores: torch.Tensor, pixels: torch.Tensor) -> bool:
    if not scores.requires_grad:
        return False
    (slope,) = torch.autograd.grad(scores.sum(), pixels, allow_unused=True)
    return slope is not None and bool(torch.isfinite(slope).all()) and bool(slope.any())


def _check_context(folder: Path, module: PreTrainedModel, asked: Asked) -> None:
    limit = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    needed = len(asked.tokens) + max(map(len, asked.tails)) - 1
    if isinstance(limit, int) and needed > limit:
        raise ConfigError(
            f"The prompt with its image and longest label has {needed} tokens but {folder} reads {limit}: "
            "shorten the template or the label words, or make the images smaller."
        )


def _unusable(
    folder: Path, module: PreTrainedModel, preprocessing: Preprocessing, problem: BaseException
) -> ModelError:
    spec = preprocessing.input
    return ModelError(
        f"{folder}: a {type(module).__name__} cannot be asked with one image of {spec.channels} × {spec.height} × "
        f"{spec.width} ({reason(problem)}). Tested families: {', '.join(TESTED)}."
    )


def _how(plan: PromptPlan, loading: Loading) -> str:
    """How the labels were scored, for the report."""
    ways = {
        "sum": "the log-probability of the label words",
        "mean": "the log-probability of the label words per token",
        "pmi": "the log-probability of the label words, less that of images without content (mean grey and noise)",
    }
    return (
        f"scored by {ways[plan.normalise]} over a temperature of {plan.temperature:g}, template {plan.template}; "
        f"equal to naive scoring to {loading.difference:.1g} at load"
    )
