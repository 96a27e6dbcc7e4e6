"""Plans: read strictly, paths from the plan's own folder, every mistake named with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from xvision import codec
from xvision.config import DataPlan, FairnessPlan, ModelPlan, Plan, load_plan
from xvision.errors import ConfigError
from xvision.judge import load_criteria
from xvision.registry import parse_setting

BODY = '[data]\npath = "data.csv"\n[model]\npath = "checkpoint"\n'
_RULE = '[decision]\npositive = "a"\nrule = { target = "fpr", value = '


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_plan(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    plan = load_plan(write(tmp_path, 'criteria = "c.toml"\n' + BODY))
    assert plan.data.path == str(tmp_path / "data.csv")
    assert plan.model.path == str(tmp_path / "checkpoint")
    assert plan.criteria == str(tmp_path / "c.toml")


def test_a_hub_id_stays_one(tmp_path: Path) -> None:
    assert load_plan(write(tmp_path, BODY.replace("checkpoint", "google/vit-base"))).model.path == "google/vit-base"


def test_a_plan_survives_being_stored(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, BODY + "[analysis.calibration]\nbins = 10\n[decision]\nthreshold = 0.3\n"))
    assert codec.read(Plan, codec.plain(plan), "run.json", ConfigError) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam = 1\n" + BODY, r"unknown key 'nam'. Did you mean 'name'\?"),
        (BODY + "[training]\nepoch = 3", r"unknown key 'training.epoch'. Did you mean 'epochs'\?"),
        (BODY + '[training]\nepochs = "3"', r"training.epochs is '3': .*valid integer"),
        (BODY + "[training]\nepochs = 0", r"training.epochs is 0: give a whole number of at least 1"),
        (BODY + "[training]\nlearning_rate = 0.0", r"learning_rate and training.clip must be above 0"),
        (BODY + "[decision]\nthreshold = 1.0", r"decision.threshold is 1.0"),
        (BODY + _RULE + "0.9 }\nthreshold = 0.4", r"decision has a threshold and a rule to choose one: keep the one"),
        (BODY + _RULE.replace('positive = "a"', "") + "0.9 }", r"decision.rule needs decision.positive"),
        (BODY + _RULE + "1.0 }", r"decision.rule.value is 1.0: give a share above 0 and below 1"),
        (BODY + _RULE.replace("fpr", "youden") + "0.9 }", r"decision.rule.target is 'youden': .*net benefit"),
        (BODY + '[backbone]\npreset = "huge"', r"backbone.preset is 'huge'"),
        (BODY + "[backbone]\npatch_size = 7", r"64 is not a multiple of backbone.patch_size 7"),
        ("batch_size = 0\n" + BODY, r"batch_size is 0"),
        ('[model]\npath = "m"', r"the key 'data' is missing"),
        ("=", r"not a readable TOML file"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(write(tmp_path, text))


def test_settings_are_written_as_in_toml() -> None:
    assert parse_setting("adversarial.epsilons=[0.01, 0.02]") == ("adversarial", "epsilons", [0.01, 0.02])
    for wrong in ("bins=3", "calibration.bins", "calibration.=3"):
        with pytest.raises(ConfigError, match=r"write it as ANALYSIS.OPTION=VALUE"):
            parse_setting(wrong)
    with pytest.raises(ConfigError, match=r"is not a TOML value; put text in quotes"):
        parse_setting("attribution.baseline=blur")


def test_paths_of_a_plan_are_relative_to_its_file(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[data]\npath = "data.csv"\n[model]\npath = "model"\n[model.prompt]\ntemplate = "ask.toml"\n'
        '[backbone]\nstart = "old"\n[training.rehearsal]\ndata = "earlier.csv"\n'
    )
    found = load_plan(plan)
    assert found.model.prompt is not None
    assert found.model.prompt.template == str(tmp_path / "ask.toml")
    assert found.training.rehearsal.data == str(tmp_path / "earlier.csv")
    assert found.backbone.start == str(tmp_path / "old")
    named = plan.read_text().replace("ask.toml", "yes-no")
    plan.write_text(named)
    again = load_plan(plan).model.prompt
    assert again is not None
    assert again.template == "yes-no"


def test_the_example_is_a_plan_with_criteria() -> None:
    example = load_plan(Path(__file__).parents[1] / "examples" / "plan.toml")
    assert example.criteria is not None
    assert load_criteria(Path(example.criteria)).criterion


def test_a_column_of_the_case_mix_must_be_declared() -> None:
    data = DataPlan("data", groups=("sex",), acquisition=("site",))
    Plan(data, ModelPlan("model"), fairness=FairnessPlan(case_mix={"site": "confounder"}))
    with pytest.raises(
        ConfigError, match=r"'sit' is none of the columns in data\.groups and data\.acquisition\. .*site"
    ):
        Plan(data, ModelPlan("model"), fairness=FairnessPlan(case_mix={"sit": "mediator"}))


@pytest.mark.parametrize(("key", "value"), [("margin", 0.0), ("margin", 1.0), ("suppress_below", -1)])
def test_what_was_agreed_about_groups_must_make_sense(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"fairness.{key}"):
        FairnessPlan(**{key: value})
