"""The checks for gradient masking: what each looks at, when it is flagged, and when it proves that the attack failed.

After Carlini et al. (2019), "On evaluating adversarial robustness", Croce and Hein (2020) and Pintor et al. (2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

State = Literal["clear", "flagged", "broken", "not run"]
"""flagged: raises doubt. broken: proves that the attack failed, or that its figures are wrong."""


class Check(NamedTuple):
    """One check. statement: what is looked at. found, of: cases that show it, cases looked at. value: its statistic where it has one
    besides the share. rule: with the threshold. sentence: what it means here, with the figures, or why it was not run.
    """

    id: str
    name: str
    statement: str
    found: int
    of: int
    value: float | None
    rule: str
    state: State
    sentence: str


class Rule(NamedTuple):
    """A check that says nothing of "broken" raises doubt only. mandatory: without it nothing is supported. fewest: cases below which it
    could never be flagged, so that it is not run.
    """

    name: str
    statement: str
    rule: str
    mandatory: bool = False
    fewest: int = 1


def not_run(id_: str, reason: str) -> Check:
    """The check of this id, with the reason why there is nothing to say."""
    rule = RULES[id_]
    return Check(id_, rule.name, rule.statement, 0, 0, None, rule.rule, "not run", f"Not run: {reason}.")


_SIGN = (
    "Flagged when these are significantly more than the reverse: exact one-sided sign test over the cases where the two differ,"
    " p < 0.01."
)
_TEST = "exact one-sided binomial test, p < 0.01."
_MORE = f"Flagged when these are significantly more than 1 % of the cases: {_TEST}"
RULES: Mapping[str, Rule] = {
    "M1": Rule("single_step_beats_pgd", "Cases that one gradient step breaks and PGD does not.", _SIGN, fewest=7),
    "M2": Rule(
        "black_box_beats_gradients",
        "Cases that an attack without gradients breaks and no gradient attack does.",
        f"{_SIGN} With 500 cases or more also when they are more than 0.2 % of all.",
        mandatory=True,
        fewest=7,
    ),
    "M3": Rule(
        "transfer_beats_gradients",
        "Cases that another model's adversarial image breaks and no gradient attack does.",
        _SIGN,
        fewest=7,
    ),
    "M4": Rule(
        "unbounded_survivors",
        "Cases that survive an attack within whose bounds an image is known that breaks them: any known one where everything is"
        " allowed, the mid-grey one within L∞ 0.5.",
        "Every one is a proof that the attack failed there. Flagged when significantly more than 10 % survive, broken when more than"
        f" half do: {_TEST} Cases that no known image breaks do not count: a constant model may survive.",
        mandatory=True,
        fewest=7,
    ),
    "M5": Rule(
        "not_monotone",
        "Cases broken within a smaller budget and not within a larger one, each budget attacked by itself.",
        "Flagged when for any two budgets these are significantly more than the reverse: exact one-sided sign test, p < 0.01 after"
        " Bonferroni.",
        fewest=7,
    ),
    "M6": Rule(
        "zero_gradients",
        "Cases where the margin has no slope at the image: exactly zero, or foretelling less than 1e-10 of the margin over the whole"
        " range of the pixels.",
        "Flagged at the first case; broken when all slopes are exactly zero although the model's answer changes from image to image.",
        mandatory=True,
    ),
    "M7": Rule(
        "losses_disagree",
        "Cases that an attack breaks on the margin and not on the cross-entropy, and cases where only the slope of the cross-entropy"
        " is exactly zero.",
        "Flagged when the margin breaks more by significantly over 1 % of the cases (5 % with several ways of breaking, where the two"
        f" losses aim at different things) or when the cross-entropy alone has no slope in over 1 %: {_TEST}",
        fewest=7,
    ),
    "M8": Rule(
        "nonfinite_or_cut",
        "Cases where a logit or gradient was NaN or infinite, or where the model gives no gradient for its pixels.",
        "Flagged at the first case that is not finite; broken where none is, or where the gradient is cut off.",
        mandatory=True,
    ),
    "M9": Rule(
        "unstable_loss",
        "Cases whose margin changes by more than 10 % in a cube of side 8/255, on average of random draws and beyond what its slope"
        " foretells.",
        f"Flagged when significantly more than 10 % of the cases do: {_TEST}",
        fewest=7,
    ),
    "M10": Rule(
        "not_converged",
        "Survivors whose best loss rose in the last 10 steps by more than 5 % of its whole rise.",
        f"Flagged when significantly more than 10 % of the survivors do: {_TEST}",
        mandatory=True,
    ),
    "M11": Rule(
        "doubling_helps", "Cases that no gradient attack breaks but PGD with twice the steps.", _MORE, fewest=7
    ),
    "M12": Rule("restarts_help", "Cases that no gradient attack breaks but PGD from 5 starts.", _MORE, fewest=7),
    "M13": Rule(
        "silent_success",
        "Cases that an iterate of the attack broke though the attack reports them as unbroken.",
        "Broken at the first case: what is reported as standing does not stand.",
    ),
    "M14": Rule(
        "not_transferred",
        "Breaks that are none when the image is shown by itself in float32.",
        f"Flagged when significantly more than 1 % of the breaks are lost, broken when more than half are: {_TEST}",
        mandatory=True,
    ),
    "M15": Rule(
        "random_model",
        "Cases whose logits differ between repeats by more than 1e-4 of the largest, or whose decision does.",
        "Flagged at the first case: attacks must then average over draws, and a break must be voted on.",
        mandatory=True,
    ),
    "M16": Rule(
        "probabilities_given",
        "Cases whose outputs are in [0, 1]; with several outputs they also sum to 1 up to 1e-5, unless one of them spans more than half"
        " of that range.",
        "Flagged when all cases are so: probabilities taken for logits flatten every loss and shift every threshold.",
        mandatory=True,
        fewest=7,
    ),
    "M17": Rule(
        "dynamic_defence",
        "Cases for which the model takes gradients itself while it answers.",
        "Flagged at the first case.",
    ),
    "M18": Rule(
        "slope_no_better_than_chance",
        "Cases whose margin rises no more along the sign of its gradient than in a random direction of the same length.",
        f"Flagged when significantly more than 5 % of the cases are so: {_TEST}",
        fewest=7,
    ),
    "M19": Rule("noise_beats_pgd", "Cases that random noise breaks and PGD does not.", _SIGN, fewest=7),
    "M20": Rule(
        "batch_dependence",
        "Cases whose logits alone and beside other images differ by more than 1e-4 of the largest.",
        "Flagged at the first case: what an attack meets then depends on the batch.",
        mandatory=True,
    ),
    "M21": Rule(
        "gradient_is_no_slope",
        "Cases where gradient and central differences along 32 random directions have a cosine below 0.9.",
        f"Flagged when significantly more than 10 % of the cases that can be measured are so: {_TEST}",
        fewest=7,
    ),
    "M22": Rule(
        "fails_on_linear_twin",
        "Cases of a linear model of the same size that the attack leaves where the closed form says that they can be broken, or breaks"
        " where it says that they cannot.",
        "Broken at the first case: the tool fails, not the model.",
        mandatory=True,
    ),
}
"""By id. Why shares are tested and not compared: one of 30 cases is more than any limit below 3 %, and no sign of anything."""
