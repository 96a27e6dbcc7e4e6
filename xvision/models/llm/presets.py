"""Tiny language-model bodies with random weights: every part of the large ones, small enough for one CPU thread."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

_WIDTH = 64
# Without norms on queries and keys, the usual 0.02 is too small at this width: attention stays flat and the network
# learns nothing.
_SCALE = _WIDTH**-0.5


def tiny_bodies(tokens: int) -> dict[str, PreTrainedConfig]:
    """Preset → body for sequences of ``tokens``: one row for a vocabulary, no dropout, no special tokens."""
    decoder: dict[str, Any] = {
        "vocab_size": 1, "hidden_size": _WIDTH, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": tokens,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    return {
        "tiny-qwen3": Qwen3Config(**decoder),
        "tiny-llama": LlamaConfig(**decoder, initializer_range=_SCALE),
        # As in the large ones, the window is wider than an image with its text: attention maps stay readable.
        "tiny-gemma3": Gemma3TextConfig(
            **decoder, layer_types=["sliding_attention", "full_attention"], sliding_window=max(4096, 2 * tokens),
            query_pre_attn_scalar=16,
        ),
        "tiny-gpt2": GPT2Config(
            vocab_size=1, n_embd=_WIDTH, n_layer=2, n_head=4, n_positions=tokens, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, initializer_range=_SCALE,
        ),
        "tiny-bert": BertConfig(
            vocab_size=1, hidden_size=_WIDTH, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=tokens, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            pad_token_id=None, initializer_range=_SCALE,
        ),
    }  # fmt: skip
