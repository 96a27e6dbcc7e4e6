"""Numbers to words: the one rounding policy. Proportions have three decimals, counts none, budgets are n/255."""

from __future__ import annotations

from collections.abc import Mapping

_ACRONYMS = {
    "auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "ppv": "PPV", "npv": "NPV", "fpr": "FPR", "fnr": "FNR", "psnr": "PSNR",
    "linf": "L∞", "jpeg": "JPEG", "roc": "ROC", "pgd": "PGD", "fgsm": "FGSM", "llm": "LLM", "ig": "IG",
    "l2": "L2", "l1": "L1", "l0": "L0", "apgd": "APGD", "fab": "FAB",
    "iou": "IoU", "srg": "SRG", "aopc": "AOPC", "nll": "NLL", "mce": "MCE", "aurc": "AURC", "tpr": "TPR", "mmd": "MMD", "aupr": "AUPR",
    "ssim": "SSIM", "shap": "SHAP", "lrp": "LRP",
}  # fmt: skip


def label(name: str) -> str:
    """``sensitivity_difference`` → ``Sensitivity difference``; field acronyms keep their case."""
    words = [_ACRONYMS.get(word, word) for word in name.split("_")]
    return opening(" ".join(words))


def opening(words: str) -> str:
    """Words as the beginning of a sentence; only the first letter changes, so that names keep theirs."""
    return words[:1].upper() + words[1:]


def number(value: float | None, unit: str = "") -> str:
    """One rounding for every outlet; None is an en dash."""
    if value is None:
        return "–"
    if unit == "count":
        return f"{value:,.0f}".replace(",", " ")
    if unit == "epsilon":
        return epsilon(value)
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    text = text.replace("-0.000", "0.000").replace("-", "−")
    return f"{text} {unit}" if unit else text


def epsilon(value: float) -> str:
    """A perturbation budget in [0, 1] pixel units as grey levels: 4/255."""
    levels = value * 255
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-6 else f"{levels:.2g}/255"


def interval(low: float | None, high: float | None, unit: str = "") -> str:
    """``0.871 to 0.941``, or nothing."""
    if low is None or high is None:
        return ""
    return f"{number(low, unit if unit == 'epsilon' else '')} to {number(high, unit)}"


def value(
    estimate: float | None, low: float | None, high: float | None, unit: str = "", reason: str | None = None
) -> str:
    """``0.912 (0.871 to 0.941)`` or ``not estimable (no positive cases)``."""
    if estimate is None:
        return f"not estimable ({reason})" if reason else "not estimable"
    spread = interval(low, high, unit)
    return f"{number(estimate, unit if unit == 'epsilon' else '')} ({spread})" if spread else number(estimate, unit)


def condition(where: Mapping[str, str | int | float]) -> str:
    """``sex F, severity 3`` in the order given; empty for the whole data set."""
    return ", ".join(
        f"{label(key).lower() if key.islower() else key} {_level(key, item, where)}" for key, item in where.items()
    )


def budget(value: float, norm: str) -> str:
    """An epsilon of a norm: grey levels, for L0 the share of pixel values that change."""
    return f"{100 * value:.3g} %" if norm == "l0" else epsilon(value)


def _level(key: str, item: str | float, where: Mapping[str, str | int | float]) -> str:
    if key == "epsilon" and isinstance(item, float | int):
        return budget(float(item), str(where.get("norm", "")))
    if key == "norm":
        return label(str(item))
    return f"{item:g}" if isinstance(item, float) else str(item)


def plural(count: int, noun: str) -> str:
    """``1 patient``, ``2 patients``."""
    return f"{number(count, 'count')} {noun}{'' if count == 1 else 's'}"


def listing(items: list[str] | tuple[str, ...], most: int = 5) -> str:
    """``a, b and 3 more``."""
    shown = list(items[:most])
    rest = len(items) - len(shown)
    if rest:
        return f"{', '.join(shown)} and {rest} more"
    return ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1] if shown else ""
