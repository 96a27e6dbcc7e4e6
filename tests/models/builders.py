"""Small models with random weights, and the folders they are saved in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Gemma3TextConfig,
    GPT2Config,
    IJepaConfig,
    IJepaForImageClassification,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from xvision.models.loading import quiet
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import InputSpec

BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
MLP = {"intermediate_size": 64}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
RGB = Preprocessing(InputSpec(3, 64, 64), 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 64, "width": 64},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
LABELS: dict[str, Any] = {"id2label": {0: "normal", 1: "lesion"}, "label2id": {"normal": 0, "lesion": 1}}


PRESETS = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert")
TEXTS = ("Fever and cough, male.", "History of smoking", "cough", "normal lesion effusion")
_DECODER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    "max_position_embeddings": 80,
}  # fmt: skip
LANGUAGE_MODELS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**_DECODER, tie_word_embeddings=True),
    "llama": LlamaConfig(**_DECODER, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(
        **_DECODER, layer_types=["sliding_attention", "full_attention"], sliding_window=90, query_pre_attn_scalar=8
    ),
    "gpt2": GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=80, bos_token_id=0, eos_token_id=0,
        initializer_range=0.2,
    ),
    "bert": BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=300,
        max_position_embeddings=80, initializer_range=0.2,
    ),
}  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """As GPT-2's: bytes, merged; a space belongs to the word after it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator([" normal lesion"] * 9, trainer)
    return tokenizer


def piece_tokenizer() -> Tokenizer:
    """As BERT's: lower case, words in pieces, one token for what cannot be spelt."""
    pieces = ["[PAD]", "[UNK]", "fever", "and", "cough", "normal", "lesion", "effu", "##sion", ",", ".", "male"]
    known = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(known, unk_token="[UNK]"))  # noqa: S106  # no password
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    return tokenizer


def language_model(folder: Path, family: str, tokenizer: Tokenizer | None = None, **changes: Any) -> Path:
    """A folder of a language model with random weights and, unless it is a BERT's, a tokenizer of bytes."""
    bert = family == "bert"
    config = type(LANGUAGE_MODELS[family])(**{**LANGUAGE_MODELS[family].to_dict(), **changes})
    auto = AutoModelForMaskedLM if bert else AutoModelForCausalLM
    save_folder(folder, seeded(lambda: auto.from_config(config)), None)
    (tokenizer or (piece_tokenizer() if bert else byte_tokenizer())).save(str(folder / "tokenizer.json"))
    return folder


def vit(**changes: Any) -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**{**BODY, **MLP, **LABELS, **changes}))


VISION: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": vit,
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**BODY, **MLP)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**BODY)),
    "dinov2-registers": lambda: Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(**BODY, num_register_tokens=4)
    ),
    "ijepa": lambda: IJepaForImageClassification(IJepaConfig(**BODY, **MLP)),
    "clip": lambda: CLIPForImageClassification(
        CLIPConfig(vision_config={**BODY, **MLP}, text_config={**TEXT, **SPECIAL})
    ),
    "siglip": lambda: SiglipForImageClassification(
        SiglipConfig(vision_config={**BODY, **MLP}, text_config={**TEXT, **SPECIAL})
    ),
}
WITHOUT_MAP: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "swin": lambda: SwinForImageClassification(
        SwinConfig(image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
}


def seeded(build: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """Random weights large enough that a difference shows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for weights in module.parameters():
                weights.add_(0.05 * torch.randn_like(weights))
    return module.eval()


def save_folder(folder: Path, module: PreTrainedModel, processor: dict[str, Any] | None = PROCESSOR) -> Path:
    with quiet():
        module.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def edit_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    data = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def pixels(count: int = 2, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, 64, 64, generator=torch.Generator().manual_seed(seed))
