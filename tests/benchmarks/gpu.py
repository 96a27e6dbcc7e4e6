"""How near a GPU's limit fine-tuning runs: `python -m tests.benchmarks.gpu --json OUT`. On a CPU the same code runs tiny models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import GPT2Config, PreTrainedConfig, Qwen3Config

from tests.benchmarks.harness import Row, main, row
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.llm.config import LlmImageClassifierConfig
from xvision.recipe import TrainingPlan
from xvision.training.loop import Arrays, finetune

TARGET = 0.40
CUDA = torch.cuda.is_available()


def bodies(tiny: bool) -> dict[str, tuple[PreTrainedConfig, TrainingPlan]]:
    """A body as large as ViT-B, all of it trained, and one as large as Qwen3-0.6B with LoRA; both read 224 × 224 pixels."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    base = {"n_embd": 64, "n_layer": 2, "n_head": 4} if tiny else {"n_embd": 768, "n_layer": 12, "n_head": 12}
    large = small if tiny else {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    plan = TrainingPlan(
        epochs=1,
        batch_size=4 if tiny else 256,
        precision="bfloat16",
        compile=not tiny,
        controls=False,
        learning_rate=1e-4,
    )
    lora = TrainingPlan(
        epochs=1,
        batch_size=4 if tiny else 128,
        precision="bfloat16",
        compile=not tiny,
        policy="lora",
        controls=False,
        learning_rate=1e-4,
    )
    gpt = GPT2Config(
        vocab_size=1,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        **base,
    )
    qwen = Qwen3Config(
        vocab_size=1, num_attention_heads=4 if tiny else 16, num_key_value_heads=2 if tiny else 8, head_dim=16 if tiny else 128,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=None, **large,
    )  # fmt: skip
    return {"ViT-B-size, full": (gpt, plan), "Qwen3-0.6B-size, LoRA": (qwen, lora)}


def measure(quick: bool) -> Iterator[Row]:
    """MFU of a whole training run."""
    side, tiny = (224, False) if CUDA else (32, True)
    for name, (body, plan) in bodies(tiny).items():
        count = plan.batch_size * (8 if quick or tiny else 40)
        pixels = np.random.default_rng(0).integers(0, 255, (count, 3, side, side), dtype=np.uint8)
        arrays = Arrays(pixels, np.arange(count, dtype=np.int64) % 2)
        held = Arrays(pixels[: plan.batch_size], arrays.labels[: plan.batch_size])
        config = LlmImageClassifierConfig(
            text_config=body, image_size=side, patch_size=16 if side == 224 else 8, num_channels=3,
            id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1},
        )  # fmt: skip
        with TemporaryDirectory() as folder:  # the first run compiles and is thrown away
            first, best = (
                finetune(LlmImageClassifier(config), arrays, held, plan, Path(folder) / name)
                for name in ("first", "best")
            )
        figure = (
            f"{100 * best.mfu:.1f} % at {best.images_per_second:.0f} images/s of {best.matrix_rate / 1e12:.1f} TFLOP/s"
        )
        how = (
            f"{best.device}, {side} px, batch {plan.batch_size}, {plan.precision}; operations counted by torch, matrix rate "
            f"measured in the same process; with compiling {100 * first.mfu:.1f} %"
        )
        if CUDA:
            yield row(f"MFU, {name}", figure, f"≥ {100 * TARGET:.0f} %", best.mfu >= TARGET, how)
        else:
            yield row(f"the same code runs with a tiny body: {name}", figure, "runs", True, how)


def left_out(quick: bool) -> list[str]:
    return (
        []
        if CUDA
        else [
            "the share of a GPU's matrix rate: there is no CUDA device here, and tiny bodies on a CPU say nothing of it"
        ]
    )


if __name__ == "__main__":
    sys.exit(main("gpu", measure, left_out))
