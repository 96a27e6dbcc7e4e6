"""The wordings: the deployed question in other words, or the clinical text with small edits, and the logits of each.

Shapes: V wordings, N cases, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from xvision.attacks.wording import EDITS
from xvision.audit import Audit
from xvision.config import PromptPlan
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError, nearest
from xvision.methods.corruptions import corrupt
from xvision.methods.prompt_variants import listings, recased
from xvision.models.metered import MeteredClassifier
from xvision.models.vlm.prompts import (
    AskedClassifier,
    PromptTemplate,
    Question,
    fill,
    known_templates,
    placeholders,
    read_template,
)
from xvision.result import NotApplicable

DEPLOYED = "deployed"
_NOISE, _SEVERITY = "gaussian_noise", 1
_ORDERS = 3
"""Other orders of the options, at most."""
_REWORDED = (
    "full stop", "blank at the end", "double blanks", "first letter", "lower case", "sentences swapped", "questions last",
    "questions first",
)  # fmt: skip
"""Edits that may be made to a question that lists its options."""
_ANSWERS = {"yes", "no", "true", "false"}


class _Draft(NamedTuple):
    """A wording before the model has agreed to it. own: the user's, so that it must be possible."""

    name: str
    question: Question
    labels: Mapping[str, str]
    own: bool = False


@dataclass(frozen=True, eq=False)
class Wordings:
    """The wordings, the deployed one first. models: the model asked so. texts: or the text of each case. shown: in words.

    changed: (V, N) whether a case is asked otherwise than deployed. left_out: wordings that this model cannot be asked, and why.
    """

    names: tuple[str, ...]
    shown: tuple[str, ...]
    models: Mapping[str, AskedClassifier]
    texts: Mapping[str, Mapping[str, str]]
    changed: np.ndarray
    left_out: tuple[str, ...]
    seed: int
    modality: str | None

    def reader(self, name: str, batch: Batch) -> MeteredClassifier:
        if self.models:
            return MeteredClassifier(self.models[name], batch.model.meter)
        return batch.model.with_text([self.texts[name][case] for case in batch.ids])


def wordings(
    audit: Audit, positions: np.ndarray, templates: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> Wordings:
    if hasattr(type(audit.model), "with_question"):
        return _questions(audit, len(positions), templates, synonyms)
    name = audit.model.description.get("architecture", "this model")
    ids = [str(case) for case in audit.ids[positions]]
    table = audit.data.table
    own = {case: str(table.at[case, "text"]) for case in ids} if "text" in table.columns else {}
    if not any(words.strip() for words in own.values()):
        raise NotApplicable(f"{name} reads no question but a clinical text, and no case comes with one")
    edited = {edit: {case: change(words) for case, words in own.items()} for edit, change in EDITS.items()}
    texts = {DEPLOYED: own} | {edit: found for edit, found in edited.items() if found != own}
    changed = np.array([[found[case] != own[case] for case in ids] for found in texts.values()])
    shown = tuple("the text that comes with the image" + (f", {edit}" if edit != DEPLOYED else "") for edit in texts)
    return Wordings(tuple(texts), shown, {}, texts, changed, (), audit.seed, audit.modality)


def _questions(audit: Audit, cases: int, templates: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> Wordings:
    """The model asked in each wording that it can be asked; built-in ones that are the same are asked once."""
    model = cast(AskedClassifier, audit.model)
    models: dict[str, AskedClassifier] = {}
    shown, left_out, seen = [], [], set()
    for draft in _drafts(model.plan, templates, synonyms):
        key = (draft.question.text, draft.question.answer, *draft.labels.values())
        if draft.name in models or (key in seen and not draft.own):
            continue
        try:
            models[draft.name] = model.with_question(draft.question, draft.labels)
        except ConfigError as problem:
            if draft.own:
                raise
            left_out.append(f"{draft.name} ({problem})")
            continue
        seen.add(key)
        words = " / ".join(each.strip() for each in draft.labels.values())
        shown.append(f"{draft.question.text} {draft.question.answer}".strip() + f" → {words}")
    changed = np.ones((len(models), cases), dtype=bool)
    changed[0] = False
    return Wordings(tuple(models), tuple(shown), models, {}, changed, tuple(left_out), audit.seed, audit.modality)


def _drafts(plan: PromptPlan, templates: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> Iterator[_Draft]:
    """The deployed wording, the user's, and those that come with xvision."""
    labels, deployed = dict(plan.labels), read_template(plan.template)
    yield _Draft(DEPLOYED, fill(deployed, labels), labels, own=True)
    yield from _users(deployed, labels, templates, synonyms)
    yield from _built_in(deployed, labels)


def _users(
    deployed: PromptTemplate, labels: Mapping[str, str], templates: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> Iterator[_Draft]:
    stems = [Path(name).stem for name in templates]
    for name, stem in zip(templates, stems, strict=True):
        short = stem if stems.count(stem) == 1 else name
        yield _Draft(f"template {short}", fill(read_template(name), labels), labels, own=True)
    for label, others in synonyms.items():
        if label not in labels:
            raise ConfigError(f"synonyms names {label!r}, which is no class. {nearest(label, labels)}")
        for words in others:
            new = {**labels, label: words}
            yield _Draft(f"{label}: {words.strip()}", fill(deployed, new), new, own=True)


def _built_in(deployed: PromptTemplate, labels: Mapping[str, str]) -> Iterator[_Draft]:
    """A yes-or-no question stays one: other templates would have other answers."""
    closed = "finding" in placeholders(deployed) or bool(
        _ANSWERS & {words.strip().lower() for words in labels.values()}
    )
    for name in known_templates():
        template = read_template(name)
        if ("finding" in placeholders(template)) == closed and not (closed and len(labels) != 2):
            yield _Draft(f"template {name}", fill(template, labels), labels)
    question = fill(deployed, labels)
    for edit in _REWORDED:
        yield _Draft(f"wording: {edit}", question._replace(text=EDITS[edit](question.text)), labels)
    for case, words in recased(tuple(labels.values())).items():
        new = dict(zip(labels, words, strict=True))
        yield _Draft(f"labels: {case}", fill(deployed, new), new)
    if "options" in placeholders(deployed):
        for name, order in tuple(listings(len(labels)).items())[:_ORDERS]:
            yield _Draft(f"options {name}", fill(deployed, labels, [tuple(labels)[place] for place in order]), labels)


def measure(batch: Batch, *, asked: Wordings) -> Rows:
    """logits (B, V, states, K)."""
    noisy = corrupt(batch.pixels, _NOISE, _SEVERITY, batch.ids, seed=asked.seed, modality=asked.modality)
    found = []
    with torch.inference_mode():
        for name in asked.names:
            model = asked.reader(name, batch)
            found.append(torch.stack([model.logits(pixels) for pixels in (batch.pixels, noisy)], dim=1))
    return {"logits": torch.stack(found, dim=1).float().cpu().numpy()}
