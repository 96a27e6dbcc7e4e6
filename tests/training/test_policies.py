"""Which weights each policy trains, that nothing else moves, and that everything trained is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xvision.errors import ConfigError, ModelError
from xvision.models.checkpoint import load_model, save_model
from xvision.models.llm.adapters import merged
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.recipe import ADAPTERS, AdapterPlan, Policy, TrainingPlan
from xvision.training.policies import Applied, apply_policy

PRESETS = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert")
POLICIES: tuple[Policy, ...] = ("full", "head", "norms", "fpt", "last_k", "bitfit", *ADAPTERS)
HEAD = {"cls_norm.weight", "cls_norm.bias", "classifier.weight", "classifier.bias"}
STEPS = 20


def tiny(name: str = "tiny-qwen3", **changes: Any) -> LlmImageClassifier:
    return preset(name, **{"image_size": 16, "seed": 0, **changes})


def batch(step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 1, 16, 16, generator=generator), torch.tensor([0, 1, 0, 1])


def train(model: LlmImageClassifier, applied: Applied, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """The loop's update, from ``steps.start`` updates already done."""
    model.train()
    for step in steps:
        pixels, labels = batch(step)
        optimizer.zero_grad()
        model(pixels, labels=labels).loss.backward()
        applied.before_step()
        optimizer.step()
        applied.after_step(step + 1)
    model.eval()


def adam(model: LlmImageClassifier, rate: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW([weights for weights in model.parameters() if weights.requires_grad], lr=rate)


def trained(
    policy: Policy, name: str = "tiny-qwen3", steps: int = 2, **changes: Any
) -> tuple[LlmImageClassifier, Applied]:
    model = tiny(name, **changes)
    applied = apply_policy(model, TrainingPlan(policy=policy), steps=STEPS)
    train(model, applied, adam(model), range(steps))
    return model, applied


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(batch()[0]).logits
    return found


def names_of(policy: Policy, name: str = "tiny-qwen3", plan: TrainingPlan | None = None, **changes: Any) -> set[str]:
    return set(apply_policy(tiny(name, **changes), plan or TrainingPlan(policy=policy), steps=STEPS).trainable)


def outside(model: LlmImageClassifier) -> set[str]:
    return {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", PRESETS)
def test_what_is_trained_moves_is_saved_and_loaded_to_the_last_bit(name: str, policy: Policy, tmp_path: Path) -> None:
    model = tiny(name)
    applied = apply_policy(model, TrainingPlan(policy=policy), steps=STEPS)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    train(model, applied, adam(model), range(2))
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == set(applied.trainable) == {key for key, value in model.named_parameters() if value.requires_grad}
    assert moved >= HEAD
    assert applied.trainable_parameters == sum(before[key].numel() for key in moved)
    assert applied.total_parameters == sum(value.numel() for value in before.values())
    save_model(model, tmp_path / "model")
    loaded: Any = load_model(tmp_path / "model", device="cpu")
    assert (logits(loaded.module) - logits(model)).abs().max() == 0.0
    assert (logits(merged(model)) - logits(model)).abs().max() < 1e-5


def test_parameter_counts_in_closed_form() -> None:
    """Width 64, feed-forward 192, queries 64, keys and values 32, two layers; a stem of 8-pixel patches."""
    counts = {
        policy: apply_policy(tiny(), TrainingPlan(policy=policy), steps=STEPS).trainable_parameters
        for policy in POLICIES
    }
    head, table = 2 * 64 + 64 * 2 + 2, 64
    sides = ((64, 64), (64, 32), (64, 32), (64, 64), (64, 192), (64, 192), (192, 64))
    rest = counts["full"] - sum(a * b for a, b in sides) * 2 - (4 * 64 + 2 * 32 + 64)  # matrices; norms of the body
    assert counts["head"] == head
    assert counts["lora"] == rest + 2 * sum(8 * (a + b) for a, b in sides)
    assert counts["dora"] == counts["lora"] + 2 * sum(b for _, b in sides)
    assert counts["adalora"] == rest + 2 * sum(12 * (a + b + 1) for a, b in sides)
    assert counts["ia3"] == rest + 2 * sum(b for _, b in sides)
    assert counts["prefix"] == rest + 8 * 2 * 2 * 32
    assert counts["prompt"] == rest + 8 * 64
    assert counts["bottleneck"] == rest + 4 * (2 * 64 * 16 + 16 + 64)
    assert counts["fpt"] == rest + (4 * 64 + 2 * 32 + 64)
    assert counts["last_k"] == sum(a * b for a, b in sides) + 2 * 64 + 2 * 16 + 64 + head
    assert rest - head - table == sum(
        value.numel() for key, value in tiny().named_parameters() if key.startswith(("stem", "pos"))
    )


def test_norms_are_all_norms_and_biases_all_biases() -> None:
    names = names_of("norms", "tiny-gpt2")
    model = tiny("tiny-gpt2")
    norms = {
        f"{key}.{part}"
        for key, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    assert names == norms | HEAD
    assert (
        names_of("bitfit", "tiny-gpt2") == {key for key, _ in model.named_parameters() if key.endswith("bias")} | HEAD
    )


@pytest.mark.parametrize("name", PRESETS)
def test_fpt_freezes_attention_and_feed_forward_alone(name: str) -> None:
    frozen = {key for key, _ in tiny(name).named_parameters()} - names_of("fpt", name)
    assert frozen
    assert all(part in key for key in frozen for part in ("backbone.",))
    assert all(any(part in key for part in ("attn", "attention", "mlp", "dense")) for key in frozen)
    assert not any("norm" in key.lower() or ".ln_" in key for key in frozen)


@pytest.mark.parametrize(
    ("name", "layer", "norm"),
    [
        ("tiny-qwen3", "backbone.layers.1.", {"backbone.norm.weight"}),
        ("tiny-gpt2", "backbone.h.1.", {"backbone.ln_f.weight", "backbone.ln_f.bias"}),
        ("tiny-bert", "backbone.encoder.layer.1.", set()),
    ],
)
def test_last_k_is_the_last_layers_the_final_norm_and_the_head(name: str, layer: str, norm: set[str]) -> None:
    names = names_of("last_k", name)
    assert names == {key for key, _ in tiny(name).named_parameters() if key.startswith(layer)} | norm | HEAD
    both = names_of("last_k", name, TrainingPlan(policy="last_k", last_k=2))
    assert names < both


def test_more_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"training\.last_k is 3 but the backbone has 2 layers"):
        apply_policy(tiny(), TrainingPlan(policy="last_k", last_k=3))


@pytest.mark.parametrize("policy", ADAPTERS)
def test_adapters_train_the_rest_of_the_classifier_and_no_weight_of_the_body(policy: Policy) -> None:
    """With endings such as "norm", peft would unfreeze every norm of the body; here it is given whole names."""
    model, names = tiny(), names_of(policy)
    body = {key for key, _ in model.named_parameters()} - outside(model)
    assert outside(model) | {"backbone.embed_tokens.weight"} == {key for key in names if key in outside(model) | body}
    assert not any("base_layer" in key or "norm" in key for key in names if key.startswith("backbone."))


@pytest.mark.parametrize("policy", ["lora", "prompt", "bottleneck"])
def test_the_head_is_saved_with_the_adapter(policy: Policy, tmp_path: Path) -> None:
    model, _ = trained(policy)
    save_model(model, tmp_path / "model")
    loaded: Any = load_model(tmp_path / "model", device="cpu")
    assert torch.equal(loaded.module.classifier.weight, model.classifier.weight)
    assert not torch.equal(model.classifier.weight, tiny().classifier.weight)


@pytest.mark.parametrize("policy", ["full", "head", "lora", "prompt"])
def test_a_token_that_nobody_reads_is_not_trained(policy: Policy) -> None:
    assert "backbone.embed_tokens.weight" not in names_of(policy, readout="mean")
    model, applied = trained(policy, readout="mean")
    assert all(value.grad is not None for key, value in model.named_parameters() if key in applied.trainable)


def test_label_words_are_the_head() -> None:
    assert names_of("head", head="label words") == {"classifier.weight"}
    assert "classifier.weight" in names_of("lora", head="label words")


def test_bodies_without_biases_say_what_bitfit_trains_instead() -> None:
    applied = apply_policy(tiny(), TrainingPlan(policy="bitfit"))
    assert applied.notes == ("the backbone qwen3 has no biases: bitfit trains those of the image stem, and the head",)
    assert not any(name.startswith("backbone.") for name in applied.trainable)
    assert apply_policy(tiny("tiny-bert"), TrainingPlan(policy="bitfit")).notes == ()


def test_notes_say_what_a_reader_would_not_expect() -> None:
    def notes(policy: Policy, name: str = "tiny-qwen3", **changes: Any) -> str:
        return "; ".join(apply_policy(tiny(name, **changes), TrainingPlan(policy=policy, ema=0.9), steps=STEPS).notes)

    assert "scales the outputs of every linear layer" in notes("ia3")
    assert "starts at rank 12 and cuts to 8 on average, from update 3 to 14" in notes("adalora")
    assert "moving average mixes ranks" in notes("adalora")
    windowed = tiny("tiny-gemma3")
    windowed.config.text_config.sliding_window = 12
    (note,) = apply_policy(windowed, TrainingPlan(policy="prompt")).notes
    assert "gemma3_text does not reach over image and virtual tokens" in note
    assert "the 2 kept words" in notes("lora", text_tokens=3, texts=["dry cough"])
    assert notes("lora") == notes("full") == notes("prompt") == ""


def test_new_adapters_depend_on_the_seed_alone_and_leave_the_callers_numbers() -> None:
    plan, other = TrainingPlan(policy="lora", seed=4), TrainingPlan(policy="lora", seed=5)
    one, two, three = tiny(), tiny(), tiny()
    torch.manual_seed(1)
    apply_policy(one, plan)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    apply_policy(two, plan)
    apply_policy(three, other)
    states = [model.state_dict() for model in (one, two, three)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_new_prompts_are_as_large_as_image_tokens() -> None:
    model = tiny()
    with torch.no_grad():
        model.stem.norm.weight.fill_(0.02)  # what a pretrained vocabulary sets it to
    apply_policy(model, TrainingPlan(policy="prompt", adapter=AdapterPlan(virtual_tokens=64)))
    assert 0.019 < model.backbone.virtual.embedding.weight.std() < 0.021


def test_applying_a_policy_again_changes_nothing() -> None:
    model, applied = trained("lora")
    before = logits(model)
    again = apply_policy(model, TrainingPlan(policy="lora"))
    assert again.trainable == applied.trainable
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_stays(training: bool) -> None:
    model = tiny().train(training)
    apply_policy(model, TrainingPlan(policy="bottleneck"))
    assert all(part.training == training for part in model.modules())


def test_another_adapter_is_not_put_on_top() -> None:
    model, _ = trained("prompt")
    with pytest.raises(
        ConfigError, match=r"policy is 'lora', but .* another adapter \(kind prompt, virtual_tokens 8\)"
    ):
        apply_policy(model, TrainingPlan(policy="lora"))
    with pytest.raises(ConfigError, match="another adapter"):
        apply_policy(model, TrainingPlan(policy="prompt", adapter=AdapterPlan(virtual_tokens=4)))
    applied = apply_policy(model, TrainingPlan(policy="head"))
    assert set(applied.trainable) == HEAD
    assert applied.notes == ("the classifier keeps the adapter it came with (kind prompt, virtual_tokens 8)",)
    assert any("virtual" in name for name in apply_policy(model, TrainingPlan()).trainable)


def test_settings_that_do_not_fit_are_errors_of_the_plan() -> None:
    cases = {
        "training.adapter: rank is 65 but the backbone is 64 wide": TrainingPlan(
            policy="lora", adapter=AdapterPlan(rank=65)
        ),
        r"training.adapter: targets names 'proj', .* it has down_proj, gate_proj": TrainingPlan(
            policy="dora", adapter=AdapterPlan(targets=("proj",))
        ),
        "training.adapter: .*dropout is 1": TrainingPlan(policy="lora", adapter=AdapterPlan(dropout=1.0)),
        "training.adapter: .*virtual_tokens is 5000": TrainingPlan(
            policy="prefix", adapter=AdapterPlan(virtual_tokens=5000)
        ),
        "training.adapter: width is 100": TrainingPlan(policy="bottleneck", adapter=AdapterPlan(width=100)),
        "training.activation_checkpointing cannot be used": TrainingPlan(
            policy="prefix", activation_checkpointing=True
        ),
        "needs 10 updates at least, not None": TrainingPlan(policy="adalora"),
    }
    for message, plan in cases.items():
        model = tiny()
        with pytest.raises(ConfigError, match=message):
            apply_policy(model, plan)
        assert model.config.adapter is None
    with pytest.raises(ConfigError, match="needs 10 updates at least, not 9"):
        apply_policy(tiny(), TrainingPlan(policy="adalora"), steps=9)


def test_targets_of_the_plan_are_the_only_ones() -> None:
    plan = TrainingPlan(policy="lora", adapter=AdapterPlan(targets=("q_proj", "v_proj")))
    adapted = {name.split(".")[-4] for name in names_of("lora", plan=plan) if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize("policy", ["lora", "dora", "adalora", "ia3", "prompt", "bottleneck"])
def test_activation_checkpointing_gives_the_same_gradients(policy: Policy) -> None:
    gradients = []
    for recompute in (False, True):
        model, _ = trained(policy)
        if recompute:
            model.activation_checkpointing_enable()
        model.train()
        model.zero_grad()
        pixels, labels = batch(7)
        model(pixels, labels=labels).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all((gradients[0][name] - gradients[1][name]).abs().max() < 1e-6 for name in gradients[0])


def test_the_rank_of_adalora_really_falls_and_only_with_its_schedule() -> None:
    model = tiny()
    applied = apply_policy(model, TrainingPlan(policy="adalora"), steps=STEPS)
    schedule = applied.schedule
    assert schedule is not None
    optimizer, totals = adam(model), []
    for step in range(STEPS):
        train(model, applied, optimizer, range(step, step + 1))
        totals.append(sum(schedule.ranks().values()))
    matrices = len(schedule.ranks())
    assert matrices == 14
    assert totals[:2] == [12 * matrices] * 2  # a tenth of the training is for measuring
    assert totals[2] < 12 * matrices
    assert totals == sorted(totals, reverse=True)
    assert totals[13:] == [8 * matrices] * 7
    assert len(set(schedule.ranks().values())) > 1  # it is the least important ones that went, wherever they were
    without = tiny()
    idle = apply_policy(without, TrainingPlan(policy="adalora"), steps=STEPS)
    steps = Applied(idle.policy, idle.trainable, 0, 0)
    train(without, steps, adam(without), range(STEPS))
    assert idle.schedule is not None
    assert sum(idle.schedule.ranks().values()) == 12 * matrices


@pytest.mark.parametrize(
    ("policy", "interrupted"),
    [("adalora", 1), ("adalora", 7), ("adalora", 16), ("dora", 7), ("prefix", 7), ("prompt", 7), ("bottleneck", 7)],
)
def test_a_resumed_training_ends_in_the_same_bits(policy: Policy, interrupted: int) -> None:
    whole, _ = trained(policy, steps=STEPS)
    model = tiny()
    applied = apply_policy(model, TrainingPlan(policy=policy), steps=STEPS)
    optimizer = adam(model)
    train(model, applied, optimizer, range(interrupted))
    kept = {key: value.clone() for key, value in (model.state_dict() | applied.state()).items()}
    memory = optimizer.state_dict()
    model = tiny()
    applied = apply_policy(model, TrainingPlan(policy=policy), steps=STEPS)
    model.load_state_dict({key: value for key, value in kept.items() if key in model.state_dict()})
    applied.load_state({key: value for key, value in kept.items() if key not in model.state_dict()})
    optimizer = adam(model)
    optimizer.load_state_dict(memory)
    train(model, applied, optimizer, range(interrupted, STEPS))
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_loaded_adapter_goes_on_training_where_it_was(tmp_path: Path) -> None:
    model, applied = trained("prompt")
    save_model(model, tmp_path / "model")
    loaded: Any = load_model(tmp_path / "model", device="cpu")
    again = apply_policy(loaded.module, TrainingPlan(policy="prompt"))
    assert again.trainable == applied.trainable
    assert torch.equal(logits(loaded.module), logits(model))


def test_a_body_without_a_list_of_layers_is_named() -> None:
    model = tiny()
    model.backbone.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="qwen3 does not keep its layers in one list"):
        apply_policy(model, TrainingPlan(policy="last_k"))
