"""The page of benchmarks names each of them, and a run can write its figures into it."""

import json
import re
import runpy

import pytest

from tests.support.paths import REPO

PAGE = (REPO / "docs" / "benchmarks.md").read_text()
TOOL = runpy.run_path(str(REPO / "benchmarks" / "_page.py"))


def test_every_benchmark_is_on_the_page() -> None:
    programs = {f"benchmarks/{path.name}" for path in (REPO / "benchmarks").glob("[a-z]*.py")}
    assert programs
    assert programs <= set(re.findall(r"`(benchmarks/[a-z]+\.py)`", PAGE))


def test_figures_go_between_the_markers_and_nothing_else_changes() -> None:
    once = TOOL["fill"](PAGE, "figures")
    assert "\n\nfigures\n\n" in once
    assert once.partition(TOOL["BEGIN"])[0] == PAGE.partition(TOOL["BEGIN"])[0]
    assert once.partition(TOOL["END"])[2] == PAGE.partition(TOOL["END"])[2]
    assert TOOL["fill"](once, "figures") == once
    with pytest.raises(SystemExit):
        TOOL["fill"]("a page without markers", "figures")


def test_a_figure_that_misses_its_bar_says_so() -> None:
    lines = [
        {"name": "a", "ratio": 0.44, "bar": 0.7, "holds": False, "durability": "WAL", "segments": 3},
        {"name": "b", "value": 0.3, "unit": "% of a core", "bar": 0.5, "holds": True},
        {"name": "c", "ratio": 2.0, "bar": None, "holds": True},
    ]
    rows = TOOL["table"](json.loads(json.dumps(lines))).splitlines()[2:]
    assert rows == [
        "| a | 0.44 of the limit | >= 0.7 | **no** | WAL | segments 3 |",
        "| b | 0.3 % of a core | < 0.5 | yes |  |  |",
        "| c | 2.0 of the limit | none |  |  |  |",
    ]
