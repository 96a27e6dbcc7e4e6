from dataclasses import replace

import pytest

from reports.blocks import Badge, Grid, Pictures, Prose
from reports.maps import believed, looks
from reports.results import results
from reports.shelf import Shelf
from reports.words import flat, metric_grid, shortened
from tests.factories import run_info, write_run
from xvision.charts import Images, Table
from xvision.result import Metric, statement
from xvision.store import Run, Writer


@pytest.fixture
def run(tmp_path):
    return Run(write_run(tmp_path / "run"))


def rewritten(run, chart, **changes):
    """The run with its attribution chart replaced."""
    record = run.record("attribution")
    Writer(run.path).record(replace(record, charts=(chart,), **changes))
    return Run(run.path)


def of_kind(blocks, kind):
    return [block for block in blocks if isinstance(block, kind)]


def test_numbers_have_interval_n_and_method_and_a_missing_one_its_reason():
    metrics = (
        Metric("auroc", 0.9, 0.8, 0.95, n=1200, interval="DeLong"),
        Metric("sensitivity", None, where={"sex": "F"}, reason="no positive cases"),
        Metric("cases", 1200, n=1200, unit="count"),
    )
    assert metric_grid("t", metrics).rows == (
        ("AUROC", "", "0.900", "0.800 to 0.950", "1 200", "DeLong"),
        ("Sensitivity", "sex F", "–", "no positive cases", "–", ""),
        ("Cases", "", "1 200", "", "1 200", ""),
    )


def test_numbers_of_the_whole_data_set_have_no_column_for_whom():
    grid = metric_grid("t", (Metric("auroc", 0.9, 0.8, 0.95, n=120, interval="DeLong"),))
    assert grid.columns == ("Number", "Value", "95 % interval", "n", "Method")
    assert grid.rows == (("AUROC", "0.900", "0.800 to 0.950", "120", "DeLong"),)
    assert grid.right == (1, 3)


def test_a_long_table_says_how_much_is_left_out_and_where_it_is():
    grid = shortened(Grid("t", ("a",), tuple((str(row),) for row in range(33)), note="Seen."), 30)
    assert len(grid.rows) == 30
    assert grid.note == "3 further rows of this table are in the run folder. Seen."
    assert shortened(grid, 30) == grid


def test_nested_facts_and_lists_are_said_in_words():
    values = {"a": {"b": 0.00392157, "c": None}, "d": [1200, "x"], "e": True, "f": {}}
    assert dict(flat(values)) == {"a.b": "0.003922", "a.c": "–", "d": "1 200, x", "e": "yes", "f": "{}"}


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ({"kind": "argmax", "threshold": None}, "the most probable class"),
        ({"threshold": 0.25, "statement": "a from 0.3 on"}, "a from 0.3 on"),
        (
            {"positive": "lesion", "threshold": 0.25, "declared": True},
            "lesion when its probability is at least 0.25, declared in the plan",
        ),
        (
            run_info().decision,
            "lesion when its probability is at least 0.5, by convention: the plan declares no operating point",
        ),
    ],
)
def test_the_decision_is_said_in_words(decision, said):
    assert statement(decision) == said


def test_sections_that_judge_the_decision_state_it_and_others_do_not(run):
    blocks = results(run, Shelf())
    said = [block.text for block in of_kind(blocks, Prose) if block.text.startswith("Decision: lesion when")]
    assert len(said) == 2, "performance and fairness, not attribution"


def test_pictures_are_rows_of_cases_with_their_facts(run):
    shelf = Shelf()
    (pictures,) = of_kind(results(run, shelf), Pictures)
    assert [row.name for row in pictures.rows] == ["case-1", "case-2"]
    assert "Label: lesion" in pictures.rows[0].facts
    files = [file for row in pictures.rows for file in row.files]
    assert len(set(files)) == 12
    assert all(shelf.files[file].startswith(b"\x89PNG") for file in files)


def test_the_number_of_pictures_is_bounded_and_the_rest_named(run):
    cases = run.record("attribution").cases
    many = tuple(replace(cases[0], id=f"case {place}") for place in range(30))
    chart = Images("Maps", "a", tuple(case.id for case in many), ("image", "map") * 5)
    (pictures,) = of_kind(results(rewritten(run, chart, cases=many), Shelf()), Pictures)
    assert len(pictures.rows) == 8
    assert len(pictures.columns) == 7
    assert pictures.note == "In the run folder: 22 further cases and 3 further pictures."


def test_pictures_that_were_not_kept_are_said_to_be_missing(run):
    chart = Images("Maps", "a", ("case-1",), ("image",))
    blocks = results(rewritten(run, chart, cases=()), Shelf())
    assert not of_kind(blocks, Pictures)
    assert Prose("Maps: the pictures of these cases were not kept in the run folder.", "note") in blocks


def test_cases_that_no_figure_shows_are_listed_with_their_facts(run):
    table = Table("T", "a", ("x",), ((1,),))
    blocks = results(rewritten(run, table), Shelf())
    (listed,) = [grid for grid in of_kind(blocks, Grid) if grid.title == "Cases of Attribution"]
    assert listed.rows[1] == ("case-2", "Label: lesion; Predicted: normal; Score: 0.25")


def test_columns_of_numbers_are_set_right_and_counts_have_no_decimals(run):
    table = Table("T", "a", ("name", "count", "share"), (("x", 1200, 0.5), ("y", None, 0.25)))
    (grid,) = [grid for grid in of_kind(results(rewritten(run, table), Shelf()), Grid) if grid.title == "T"]
    assert grid.right == (1, 2)
    assert grid.rows == (("x", "1 200", "0.500"), ("y", "–", "0.250"))


def test_what_the_numbers_mean_follows_without_the_question(run):
    blocks = results(run, Shelf())
    assert Prose("It means this, not that.") in blocks
    assert Prose("What does fairness say?", "lead") in blocks
    assert Prose("What does fairness say?") not in blocks


def test_a_column_of_maps_carries_the_verdict_on_its_method(run):
    (pictures,) = of_kind(results(run, Shelf()), Pictures)
    told = dict(zip(pictures.columns, pictures.maps, strict=True))
    assert told["Image"] is None
    assert told["Integrated gradients"].reason == (
        "✓ integrated gradients: describes the model. Similarity with random weights is 0.050."
    )
    assert {name: column.word for name, column in told.items() if column} == {
        "Map": "not tested",
        "Occlusion of lesion": "not decided",
        "Rollout": "no better than a control",
        "Saliency": "fails randomisation",
        "Integrated gradients": "describes the model",
    }
    stamped = [name for name, column in told.items() if column and column.stamp == "do not rely on this map"]
    assert stamped == ["Rollout", "Saliency"]
    assert told["Rollout"].reason.endswith("Do not rely on this map.")


def test_the_front_says_how_many_methods_may_be_believed(run):
    heading, sentence, grid = believed(run)
    assert heading.text == "May the maps be believed?"
    assert sentence.text == (
        "Of 5 methods with maps, 1 was found to describe the model; 2 must not be relied on (saliency and rollout); "
        "1 could not be decided; 1 not tested."
    )
    assert {row[1] for row in grid.rows} == {Badge(word) for word in looks()}


def test_a_run_whose_maps_nobody_tested_says_so(tmp_path):
    run = Run(write_run(tmp_path / "run", tested=False))
    _, sentence, grid = believed(run)
    assert sentence.text == "Of 5 methods with maps, none was found to describe the model; 5 not tested."
    assert {row[1] for row in grid.rows} == {Badge("not tested")}


def test_a_run_without_maps_says_nothing_of_them(run):
    cases = tuple(replace(case, mapped=()) for case in run.record("attribution").cases)
    assert believed(rewritten(run, Table("T", "a", ("x",), ((1,),)), cases=cases, map_verdicts={})) == []


def test_columns_are_as_wide_as_most_of_what_they_say(run):
    rows = (
        *(("site A", "−0.349 (−0.545 to −0.111)", "gaps are not excluded"),) * 3,
        *(("site B", "–", "too few"),) * 3,
    )
    table = Table("Gaps", "", ("Column", "Difference", "Note"), rows)
    record = replace(run.record("attribution"), charts=(table,))
    Writer(run.path).record(record)
    (grid,) = [block for block in of_kind(results(Run(run.path), Shelf()), Grid) if block.title == "Gaps"]
    first, second, _ = (int(width.removesuffix("fr")) for width in grid.widths)
    assert first > len("Column")
    assert second == len("−0.349 (−0.545 to −0.111)")
