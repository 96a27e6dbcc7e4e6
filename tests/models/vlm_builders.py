"""Tiny vision-language models with random weights, a tokenizer made on the spot, and the folders they are saved in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from xvision.config import PromptPlan
from xvision.models.vlm.classifier import VlmClassifier, load_vlm

from .builders import save_folder, seeded

SIDE = 32
WORDS = {
    "normal": "clear lungs",
    "effusion": "pleural effusion",
    "pneumonia": "pneumonia",
    "oedema": "oedema in both lungs",
    "nodule": "nodule",
}
"""Label words of 2, 2, 1, 4 and 1 tokens."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
TEN = {f"class {n}": f"finding {word}" for n, word in enumerate(NUMBERS)}
CORPUS = (
    "clear lungs pleural effusion pneumonia oedema in both lungs nodule yes no finding one two three four five six seven "
    "eight nine ten Which finding does this image show Answer with of What is the main few words a user model This medical "
    "shows You are radiologist Read and state impression as Impression Does or an : ? . , ; _"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<soi>", "<eoi>", "<turn>", "<video>")
CHAT = (
    "{{ bos_token }}{% for message in messages %}<turn>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def tokenizer() -> Tokenizer:
    """Every word of the corpus is one token; characters that it lacks vanish, spaces too."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = Whitespace()
    trainer = BpeTrainer(vocab_size=2000, special_tokens=list(SPECIAL), show_progress=False)
    made.train_from_iterator([CORPUS] * 3, trainer)
    made.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return made


TOKENS = tokenizer()
VOCABULARY = TOKENS.get_vocab_size() + 3
ID = {text: TOKENS.token_to_id(text) for text in SPECIAL}
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"], "pad_token_id": ID["<pad>"],
}  # fmt: skip
_TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8,
}  # fmt: skip
_GEMMA = {
    **_TEXT, "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_QWEN_IDS = {
    "image_token_id": ID["<image>"], "video_token_id": ID["<video>"], "vision_start_token_id": ID["<soi>"],
    "vision_end_token_id": ID["<eoi>"],
}  # fmt: skip
_PATCHES = {
    "depth": 2,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def llava(**text: Any) -> PreTrainedModel:
    return LlavaForConditionalGeneration(LlavaConfig(
        vision_config={**_TOWER, "model_type": "clip_vision_model", "projection_dim": 32},
        text_config={**_TEXT, **text, "model_type": "llama"}, image_token_index=ID["<image>"], vision_feature_layer=-2,
    ))  # fmt: skip


def vipllava() -> PreTrainedModel:
    """A relative that no test of ours vouches for: it goes the general way."""
    return VipLlavaForConditionalGeneration(VipLlavaConfig(
        vision_config={**_TOWER, "model_type": "clip_vision_model", "projection_dim": 32},
        text_config={**_TEXT, "model_type": "llama"}, image_token_index=ID["<image>"], vision_feature_layers=[-1, -2],
    ))  # fmt: skip


def gemma3() -> PreTrainedModel:
    return Gemma3ForConditionalGeneration(Gemma3Config(
        vision_config={**_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}, text_config=_GEMMA,
        mm_tokens_per_image=4, image_token_index=ID["<image>"], boi_token_index=ID["<soi>"], eoi_token_index=ID["<eoi>"],
    ))  # fmt: skip


def paligemma() -> PreTrainedModel:
    """Its prompt sees itself in both directions, and a label that is read along changes it: never the same twice."""
    return PaliGemmaForConditionalGeneration(PaliGemmaConfig(
        vision_config={**_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32},
        text_config={**_TEXT, "model_type": "gemma", "head_dim": 8}, projection_dim=32, image_token_index=ID["<image>"],
    ))  # fmt: skip


def qwen2() -> PreTrainedModel:
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(
        vision_config={**_PATCHES, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        text_config={**_TEXT, "rope_parameters": _MROPE}, **_QWEN_IDS,
    ))  # fmt: skip


def qwen2_5() -> PreTrainedModel:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        vision_config={**_PATCHES, **vision}, text_config={**_TEXT, "rope_parameters": _MROPE}, **_QWEN_IDS,
    ))  # fmt: skip


def qwen3() -> PreTrainedModel:
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(
        vision_config={**_PATCHES, **vision},
        text_config={**_TEXT, "head_dim": 8, "rope_parameters": {**_MROPE, "mrope_interleaved": True}}, **_QWEN_IDS,
    ))  # fmt: skip


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llava": llava,
    "gemma3": gemma3,
    "qwen2_vl": qwen2,
    "qwen2_5_vl": qwen2_5,
    "qwen3_vl": qwen3,
}
_NUMBERS = {
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}


def processor(family: str) -> dict[str, Any]:
    """A processor file as each family saves it."""
    if family.startswith("qwen"):
        size = {"shortest_edge": 64, "longest_edge": SIDE * SIDE}
        own = {
            "patch_size": 4,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "image_processor_type": "Qwen2VLImageProcessor",
        }
        return {**_NUMBERS, **own, "size": size}
    pans = {"do_pan_and_scan": None, "pan_and_scan_max_num_crops": 4} if family == "gemma3" else {}
    return {**_NUMBERS, **pans, "size": {"height": SIDE, "width": SIDE}}


def chat(family: str) -> str:
    return CHAT.replace("IMAGE", {"llava": "<image>\n", "gemma3": "<soi>"}.get(family, "<soi><image><eoi>"))


def save_vlm(
    folder: Path,
    family: str,
    build: Callable[[], PreTrainedModel] | None = None,
    *,
    template: bool = True,
    seed: int = 0,
) -> Path:
    """A checkpoint folder with model, tokenizer, processor and, unless told otherwise, a chat template."""
    save_folder(folder, seeded(build or FAMILIES[family], seed), processor(family))
    TOKENS.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if template:
        (folder / "chat_template.jinja").write_text(chat(family))
    return folder


def load(folder: Path, labels: dict[str, str] | None = None, **plan: Any) -> VlmClassifier:
    return load_vlm(folder, PromptPlan(labels=labels or WORDS, **plan), torch.device("cpu"))


def pixels(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
