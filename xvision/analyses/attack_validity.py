"""Were the attacks working?"""

from __future__ import annotations

from xvision import text
from xvision.attacks.checks import CAVEAT, Check
from xvision.attacks.evidence import attacked, plan_of
from xvision.attacks.validity import Examination, examined_norm
from xvision.audit import Audit, metric
from xvision.charts import Table
from xvision.registry import analysis, options_of
from xvision.result import Metric, Result, Where

_WORDS = {"clear": "no sign", "flagged": "warning", "broken": "attack failed", "not run": "not run"}


@analysis(
    "Attack validity",
    pillar="Robustness",
    need="pixels",
    passes="per norm and examined case about 1,200 and the queries of Square",
    follows="adversarial",
)
def attack_validity(audit: Audit) -> Result:
    """Were the attacks working, or did the model only hide its gradients?

    Some of the right decisions (``examined`` of the analysis *Adversarial*, whose options hold here) are attacked by each attack
    by itself, at the budget where nearest to half of them stand, and the model is probed: 22 checks after Carlini et al. (2019), Croce and
    Hein (2020) and Pintor et al. (2022). A weaker attack must not win over a stronger one, more effort must not change the result,
    an attack without bounds must break what can be broken, gradients must be there, finite and true, what broke must stay broken
    when the image is shown by itself, and the same attack must reach the closed form on a linear model of the same size.

    *Supported*: no sign against the attacks. *Inconclusive*: a check is flagged, or a necessary one could not be run; figures are then
    upper bounds only. *Broken*: the attacks provably failed, and no figure is given. The list is neither necessary nor
    sufficient: no sign is no proof that the attacks were strong enough.
    """
    plan = plan_of(options_of(audit, "adversarial"), width=audit.engine.part)
    found = [examined_norm(audit, plan, attacked(audit, plan, norm)) for norm in plan.epsilons]
    return Result(
        " ".join(_sentence(each) for each in found),
        (*_surrogate(found[0]), *(item for each in found for item in _metrics(each))),
        (*(_signs_table(each) for each in found), _rules(found[0])),
        caveats=(
            CAVEAT,
            *_unlike(found[0]),
            *(f"{text.label(each.norm)}, {said}" for each in found for said in (*_unconfirmed(each), *_signs(each))),
        ),
    )


def _surrogate(found: Examination) -> tuple[Metric, ...]:
    """How far the surrogate of M3, which is the same in every norm, decides as the model does."""
    if found.likeness is None or found.chance is None:
        return ()
    where: Where = {"check": "M3"}
    return (
        metric("surrogate_agreement", found.likeness, where=where),
        metric("commonest_decision", found.chance, where=where),
    )


def _unlike(found: Examination) -> tuple[str, ...]:
    like, chance = found.likeness, found.chance
    if like is None or chance is None or (like.low or 0.0) > (chance.value or 0.0):
        return ()
    return (
        "M3: the linear surrogate decides no more like the model than chance would, so that transfers that fail say nothing.",
    )


def _unconfirmed(found: Examination) -> tuple[str, ...]:
    if not found.unconfirmed:
        return ()
    what = text.plural(found.unconfirmed, "break")
    return (f"{what} of the search did not hold when the image was checked again, and are not counted (M14).",)


def _sentence(found: Examination) -> str:
    at = f"{text.label(found.norm)}, {text.plural(found.examined, 'case')} examined at epsilon {text.budget(found.epsilon, found.norm)}"
    return f"{at}: {found.verdict.state}. {found.verdict.sentence.removesuffix(CAVEAT).strip()}"


def _metrics(found: Examination) -> tuple[Metric, ...]:
    """How many of the checks came out how: exact counts."""
    counts = {
        "checks_clear": sum(each.state == "clear" for each in found.checks),
        "checks_flagged": sum(each.state in ("flagged", "broken") for each in found.checks),
        "checks_not_run": sum(each.state == "not run" for each in found.checks),
    }
    return tuple(
        Metric(name, float(count), unit="count", where={"norm": found.norm}, interval="exact count")
        for name, count in counts.items()
    )


def _signs(found: Examination) -> list[str]:
    return [f"{each.id}: {each.sentence}" for each in found.checks if each.state in ("flagged", "broken")]


def _signs_table(found: Examination) -> Table:
    return Table(
        title=f"Signs of attacks that failed, {text.label(found.norm)}: {found.verdict.state}",
        alt=f"{len(found.checks)} checks: how each came out, how many cases show it, and what it means here.",
        columns=("Check", "State", "Cases that show it", "Of", "What it means here"),
        rows=tuple((_name(each), _WORDS[each.state], each.found, each.of, each.sentence) for each in found.checks),
    )


def _rules(found: Examination) -> Table:
    return Table(
        title="What each check looks at, and its rule",
        alt=f"{len(found.checks)} checks with what is looked at and when it is flagged or proves that the attacks failed.",
        columns=("Check", "What is looked at", "Rule"),
        rows=tuple((_name(each), each.statement, each.rule) for each in found.checks),
    )


def _name(check: Check) -> str:
    return f"{check.id} {text.label(check.name)}"
