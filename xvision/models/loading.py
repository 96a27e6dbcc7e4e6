"""Weights from a checked folder, complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils import logging

from xvision.errors import ModelError, nearest
from xvision.models.folder import open_folder, read_config

# What transformers raises on contradictory or damaged folders, found by feeding it such folders.
DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError,
    SafetensorError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip


class Loaded(NamedTuple):
    """A module, and the names of weights in the folder that it has no use for."""

    module: PreTrainedModel
    unused: tuple[str, ...]


def check_model_type(folder: Path, config: dict[str, Any]) -> type:
    """The configuration class of the folder's ``model_type``; ModelError for a missing or unknown one."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in CONFIG_MAPPING:
        raise ModelError(
            f"{folder / 'config.json'} has model_type {name!r}, which transformers does not know. "
            + nearest(
                str(name), ("xvision-llm", "vit", "deit", "dinov2", "resnet", "convnext", "swin", "qwen3", "gpt2")
            )
        )
    found: type = CONFIG_MAPPING[name]
    return found


def load_weights(auto: Any, folder: Path, *, optional: tuple[str, ...] = ()) -> Loaded:
    """``auto.from_pretrained`` of a local folder in float32, never on the network and never with code of its own.

    optional: prefixes of weights that may be missing. Raises ModelError naming every other weight that is missing or
    has the wrong shape, because it would be random.
    """
    with quiet():
        try:
            module, info = auto.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, local_files_only=True,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        except DAMAGE as problem:
            raise ModelError(f"{folder} cannot be loaded ({reason(problem)}): save the model again.") from problem
    _refuse_shapes(folder, module, sorted(info["mismatched_keys"]))
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith(optional or "\0")):
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of {type(module).__name__} ({_some(missing)}): they would be random, "
            "so save the whole fine-tuned model."
        )
    return Loaded(module, tuple(sorted(info["unexpected_keys"])))


class TextBackbone(NamedTuple):
    """A pretrained text model, the folder it came from, and, where asked for, its output layer: (words, D)."""

    body: PreTrainedModel
    folder: Path
    output: torch.Tensor | None


def load_text_backbone(path_or_id: str | Path, *, output: bool = False) -> TextBackbone:
    """A pretrained text model for ``LlmImageClassifier.from_backbone``. output: its output layer is needed too.

    The output layer of a masked language model is its word embeddings, without the transform before them: a start for
    training, not the distribution that the model was trained to give.
    """
    folder = open_folder(path_or_id)
    kind = check_model_type(folder, read_config(folder))
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    if output and causal:
        whole = load_weights(AutoModelForCausalLM, folder).module.eval()
        body, rows = whole.base_model, whole.get_output_embeddings().weight
        _check_plain(folder, body)
        _check_output(folder, whole, rows)
    else:
        body = load_weights(AutoModel, folder, optional=("pooler.",)).module
        _check_plain(folder, body)
        if output and not (kind in MODEL_FOR_MASKED_LM_MAPPING and body.config.tie_word_embeddings):
            raise ModelError(
                f"{folder} holds a {type(body).__name__}, which has no output layer over words: {_LINEAR}."
            )
        rows = body.get_input_embeddings().weight
    body.config.name_or_path = ""  # a local path is nobody's business in a saved checkpoint
    return TextBackbone(body, folder, rows.detach().clone() if output else None)


_LINEAR = 'choose another one, or head = "linear"'


def _check_plain(folder: Path, module: PreTrainedModel) -> None:
    whole = module.config.get_text_config() is module.config
    if not whole or not isinstance(module.get_input_embeddings(), nn.Embedding):
        raise ModelError(f"{folder} holds a {type(module).__name__}, which is no plain text model: choose another one.")


@torch.no_grad()
def _check_output(folder: Path, whole: PreTrainedModel, rows: torch.Tensor) -> None:
    """Some language models cap, scale or shift what their output layer gives; a row per class would not be their word."""
    tokens = torch.arange(min(8, len(rows)))[None]
    hidden = whole.base_model(tokens, use_cache=False).last_hidden_state
    plain = hidden @ rows.T if hidden.shape[-1] == rows.shape[1] else None
    if plain is None or not torch.allclose(whole(tokens, use_cache=False).logits, plain, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"{folder} holds a {type(whole).__name__}, whose distribution over words is more than one matrix: {_LINEAR}."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports from transformers: what matters in them is raised or recorded."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _refuse_shapes(folder: Path, module: PreTrainedModel, wrong: list[tuple[str, Any, Any]]) -> None:
    if not wrong:
        return
    names = [f"{key} is {tuple(found)}, not {tuple(wanted)}" for key, found, wanted in wrong]
    labels = module.config.num_labels
    if all(key.startswith("classifier") and wanted[0] == labels for key, _, wanted in wrong):
        raise ModelError(
            f"{folder}: the head has {wrong[0][1][0]} outputs but config.json names {labels} classes "
            f"({_some(names)}): correct id2label."
        )
    raise ModelError(f"{folder}: weights do not fit config.json ({_some(names)}): they would be random, correct it.")


def reason(problem: BaseException) -> str:
    """What a foreign error says, in one line: its last, which is the most specific, or its name."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[-1].strip()


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
