"""Prompts as data: what a vision-language model is asked, read from TOML."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from xvision import codec
from xvision.config import PromptPlan, read_toml
from xvision.errors import ConfigError, nearest

PLACEHOLDERS = {"options": "all label words, in order", "finding": "the second of two classes"}
"""What a template may leave open."""
_FOLDER = Path(str(files("xvision.models.vlm"))) / "templates"


@codec.record
class PromptTemplate:
    """A question and how its answer starts; the label words follow. Placeholders: {options}, {finding}."""

    name: str
    text: str = ""
    """What is asked beside the image; empty for a template that only starts a sentence."""
    answer: str = ""
    """The beginning of the answer, the same for every label."""


class Question(NamedTuple):
    """A template with its placeholders filled: ``text`` is asked, ``answer`` starts what the label words continue."""

    name: str
    text: str
    answer: str


def known_templates() -> tuple[str, ...]:
    """Names of the templates that come with xvision."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def read_template(name: str) -> PromptTemplate:
    """The template of that name, or in the TOML file of that path; ConfigError when there is none or it is wrong."""
    is_path = name.endswith(".toml") or "/" in name
    if not is_path and name not in known_templates():
        raise ConfigError(
            f"prompt.template is {name!r}, which is no template here. {nearest(name, known_templates())} "
            "Your own is given by its path, ending in .toml."
        )
    path = Path(name) if is_path else _FOLDER / f"{name}.toml"
    template = codec.read(PromptTemplate, read_toml(path), str(path), ConfigError)
    if not (template.text.strip() or template.answer.strip()):
        raise ConfigError(f"{path}: text and answer are both empty: write what the model is asked.")
    for text in (template.text, template.answer):
        _check_placeholders(path, text)
    return template


def read_question(plan: PromptPlan) -> Question:
    """What the plan asks; raises ConfigError for labels, template or temperature that cannot be used."""
    _check_labels(plan)
    if not 0 < plan.temperature < float("inf"):
        raise ConfigError(f"prompt.temperature is {plan.temperature}: give a number above 0.")
    template = read_template(plan.template)
    text, answer = (_filled(template, part, plan.labels).strip() for part in (template.text, template.answer))
    return Question(template.name, text, answer)


def _check_labels(plan: PromptPlan) -> None:
    if len(plan.labels) < 2:
        raise ConfigError(
            f"prompt.labels names {len(plan.labels)} classes: write the words that stand for each of at least two, "
            'e.g. labels = { normal = "no", pneumonia = "yes" }.'
        )
    for name, words in plan.labels.items():
        if not words.strip():
            raise ConfigError(f"prompt.labels.{name} is empty: write the words that stand for this class.")


def _check_placeholders(path: Path, text: str) -> None:
    known = ", ".join(f"{{{name}}} ({meaning})" for name, meaning in PLACEHOLDERS.items())
    try:
        parts = list(Formatter().parse(text))
    except ValueError as problem:
        raise ConfigError(f"{path}: {text!r} has a stray brace ({problem}). Placeholders: {known}.") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or form or conversion):
            raise ConfigError(f"{path}: the placeholder {{{name}}} is unknown. Placeholders: {known}.")


def _filled(template: PromptTemplate, text: str, labels: Mapping[str, str]) -> str:
    asked = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    if "finding" in asked and len(labels) != 2:
        raise ConfigError(
            f"The template {template.name!r} asks for one {{finding}} but prompt.labels names {len(labels)} classes: "
            "use a template with {options}, such as 'finding'."
        )
    return text.format(options=_listed([words.strip() for words in labels.values()]), finding=list(labels)[-1])


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
