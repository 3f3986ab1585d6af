from __future__ import annotations

import doctest
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import results_page
from benchmarks.results_page import Made, minus, page, put
from tests.report.examples import RECORD, scores
from uda_reid.matrix.plan import Place
from uda_reid.matrix.summary import groups
from uda_reid.report import BOUND, SOURCE_ONLY, Record, Row

PAIRS = [("alpha", "beta"), ("beta", "alpha")]
SEEDS = [0, 1, 2]
NUMBERS = {  # recipe -> pair -> mAP by seed
    SOURCE_ONLY: {PAIRS[0]: [0.20, 0.22, 0.24], PAIRS[1]: [0.10, 0.10, 0.40]},
    "adabn": {PAIRS[0]: [0.30, 0.30, 0.30], PAIRS[1]: [0.20, 0.30, 0.40]},
    "pul": {PAIRS[0]: [0.31, 0.33, 0.32], PAIRS[1]: [0.15, 0.20, 0.25]},
    BOUND: {PAIRS[0]: [0.70, 0.72, 0.74], PAIRS[1]: [0.50, 0.60, 0.41]},
}
SURROUNDINGS: Mapping[str, str | int] = {"threads": 1, "torch": "2", "device": "cpu", "processor": "an abacus"}
MADE = Made(PAIRS, SEEDS, "python benchmarks/results.py", "2 at a time; 3 minutes in all")


def record(
    recipe: str, place: Place, *, backbone: str = "resnet_tiny", facts: Mapping[str, Any] | None = None
) -> Record:
    start, after, bound = (NUMBERS[name][place.pair][place.seed] for name in (SOURCE_ONLY, recipe, BOUND))
    known = {"trained with labels on": place.source, "checkpoint": "last"}
    return replace(
        RECORD, source=place.source, target=place.target, seed=place.seed, environment=SURROUNDINGS,
        recipe={
            "name": recipe, "strategy": recipe, "fidelity": "text", "paper": f"{recipe}'s paper",
            "encoder": {"backbone": backbone}, "pretrain": {"epochs": 3}, "notes": [f"{recipe} alone", "of all"],
        },
        rows=(
            Row(SOURCE_ONLY, scores(start), known),
            Row(recipe, scores(after), {**known, **(facts or {})}),
            Row(BOUND, scores(bound), {**known, "trained with labels on": place.target}),
        ),
        seconds={"adapt": 10.0 + place.seed},
    )  # fmt: skip


def runs_of(*recipes: str) -> dict[str, dict[Place, Record]]:
    places = [Place(*pair, seed) for seed in SEEDS for pair in PAIRS]
    return {recipe: {place: record(recipe, place) for place in places} for recipe in recipes}


def rows(text: str, title: str) -> dict[str, list[str]]:
    """Read the table below a title: first cell -> the other cells."""
    lines = text[text.index(title) :].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in (cells[0], *cells[2:])}


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(results_page).failed == 0
    assert doctest.testmod(results_page).attempted > 8


def slow_mean_and_deviation(values: list[float]) -> str:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.1f} ± {deviation:.1f}"


def test_scores_are_means_and_deviations_over_seeds() -> None:
    table = rows(page(runs_of("adabn", "pul"), MADE), "**mAP**, in percent")
    assert list(table) == ["", SOURCE_ONLY, "adabn", "pul", "supervised bound"]
    assert table[""] == ["alpha → beta", "beta → alpha", "average"]
    for name in (SOURCE_ONLY, "adabn", "pul", BOUND):
        found = table["supervised bound" if name == BOUND else name]
        columns = [[100 * value for value in NUMBERS[name][pair]] for pair in PAIRS]
        columns.append([(a + b) / 2 for a, b in zip(*columns, strict=True)])
        assert found == [slow_mean_and_deviation(column) for column in columns]


def test_differences_are_paired_by_pair_and_seed() -> None:
    text = page(runs_of("adabn", "pul"), MADE)
    gains = rows(text, "**mAP beyond source-only**")
    # 11, 11, 8 and 5, 10, -15: the spread of the differences and not of the scores
    assert gains["pul"][0] == f"+10.0 ± {statistics.stdev([11, 11, 8]):.1f}"
    assert gains["pul"][1] == f"+0.0 ± {statistics.stdev([5, 10, -15]):.1f}"
    assert rows(text, "**mAP beyond `adabn`**").keys() == {"", "pul"}
    assert rows(text, "**mAP beyond `adabn`**")["pul"][0] == f"+2.0 ± {statistics.stdev([1, 3, 2]):.1f}"
    assert "beyond `adabn`" not in page(runs_of("pul"), MADE)


def test_share_of_the_gap_is_not_told_where_one_gap_is_under_two_points() -> None:
    shares = rows(page(runs_of("adabn"), MADE), "**Share of the gap closed**")["adabn"]
    each = [100 * gain / 50 for gain in (10, 8, 6)]
    assert shares == [f"16 ± {statistics.stdev(each):.0f}", "n/a", "n/a"]  # seed 2: from 40 to 41


def test_recipes_with_a_source_model_of_their_own_have_rows_of_their_own() -> None:
    runs = runs_of("adabn")
    runs["pul"] = {place: record("pul", place, backbone="resnet50") for place in runs["adabn"]}
    assert groups(runs) == [["adabn"], ["pul"]]
    text = page(runs, MADE)
    assert list(rows(text, "**mAP**, in percent"))[1:] == [
        "source-only (a)", "adabn", "supervised bound (a)", "source-only (b)", "pul", "supervised bound (b)"
    ]  # fmt: skip
    assert "- (a) adabn: encoder.backbone resnet_tiny\n- (b) pul: encoder.backbone resnet50" in text
    assert "beyond `adabn`" not in text  # another start: not compared
    assert groups(runs_of("adabn", "pul")) == [["adabn", "pul"]]


def test_a_recipe_that_adapts_nothing_is_the_source_only_row() -> None:
    runs = runs_of("pul")
    runs["ide"] = {
        place: replace(each, recipe={**each.recipe, "name": "ide", "strategy": "source_only"})
        for place, each in runs["pul"].items()
    }
    text = page(runs, MADE)
    assert list(rows(text, "**mAP**, in percent"))[1:] == [SOURCE_ONLY, "pul", "supervised bound"]
    assert rows(text, "**Seconds to adapt**").keys() == {"", "pul"}


def test_runs_that_failed_are_named_and_their_seeds_counted() -> None:
    runs = runs_of("adabn", "pul")
    del runs["pul"][Place("alpha", "beta", 2)]
    runs["adda"] = {}
    text = page(runs, replace(MADE, failed=["alpha -> beta, pul, seed 2: no space left"]))
    assert "Failed and missing below: alpha -> beta, pul, seed 2: no space left" in text
    first, second, average = rows(text, "**mAP**, in percent")["pul"]
    assert first == "32.0 ± 1.4 (2 of 3 seeds)"
    assert second == "20.0 ± 5.0"
    assert average.endswith("(2 of 3 seeds)")
    assert rows(text, "**mAP**, in percent")[SOURCE_ONLY][0] == "22.0 ± 2.0"  # adabn's runs have it
    assert rows(text, "**mAP beyond source-only**")["adda"] == ["–", "–", "–"]
    assert page({"pul": {}}, replace(MADE, failed=["all"])).endswith("Nothing has finished.")


def test_ledger_shows_what_differs_and_says_what_does_not() -> None:
    runs = runs_of("adabn", "pul")
    warned = {
        place: record("pul", place, facts={"warnings": f"{'some' if place.seed else 'none'}"}) for place in runs["pul"]
    }
    text = page({**runs, "pul": warned}, MADE)
    ledger = rows(text, "**Supervision ledger**")
    assert ledger[""] == [SOURCE_ONLY, "adabn", "pul", BOUND]
    assert ledger["trained with labels on"] == ["the source", "the source", "the source", "the target"]
    assert ledger["warnings"] == ["-", "-", "some (4 of 6), none (2 of 6)", "-"]
    assert "The same for all: checkpoint: last." in text
    assert "- `pul`: pul's paper; fidelity in profile paper: text\n  - pul alone\n- all of them\n  - of all" in text


def test_page_says_how_it_was_made() -> None:
    text = page(runs_of("pul"), MADE)
    assert "```sh\npython benchmarks/results.py\n```" in text
    assert "over 3 seeds" in text and "an abacus, threads per run: 1, 2 at a time; 3 minutes in all" in text
    assert rows(text, "**Seconds to adapt**")["pul"] == ["11", "10", "12", "6"]
    assert "Queries: beta 2, 1 skipped; alpha 2, 1 skipped." in text
    single = page(
        {"pul": {Place("alpha", "beta", 0): record("pul", Place("alpha", "beta", 0))}},
        replace(MADE, pairs=PAIRS[:1], seeds=[0]),
    )
    assert rows(single, "**mAP**, in percent")["pul"] == ["31.0"]
    assert "one seed" in single


@pytest.mark.parametrize(
    "before", ["", "# Results\n\nAs follows.\n", "# Results\n\n<!-- small: made by benchmarks/results.py -->\n"]
)
def test_a_section_is_put_where_an_older_one_was(before: str) -> None:
    first = put(before, "one", "scenes")
    assert first.startswith(before.rstrip())
    written = f"{first}\nWritten by hand.\n"
    second = put(put(written, "other", "paper"), "two", "scenes")
    assert second == put(first.replace("one", "two") + "\nWritten by hand.\n", "other", "paper")
    assert "one" not in second


def test_minus_leaves_out_what_one_side_lacks() -> None:
    first, second = Place("a", "b", 0), Place("a", "b", 1)
    assert minus({first: 3.0, second: None}, {first: 1.0, second: 2.0}) == {first: 2.0, second: None}
    assert minus({first: 3.0}, {}) == {}
