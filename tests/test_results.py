"""Pages of results: the tables of a study are those of the results that are committed beside it."""

from pathlib import Path

import pytest

from fluvial.tools.study.page import summary
from fluvial.tools.study.plan import read_study
from fluvial.tools.study.run import results_of
from fluvial.tools.study.tables import markdown, tables

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STUDIES = sorted(file.parent for file in RESULTS.glob("*/study.yaml"))


@pytest.mark.parametrize("folder", STUDIES, ids=[folder.name for folder in STUDIES])
def test_the_tables_of_a_study_are_those_of_its_results(folder):
    plan = read_study(folder / "study.yaml")
    results = results_of(plan, folder)
    assert results, "no results are committed"
    page = (RESULTS / f"{folder.name}.md").read_text()
    for part in markdown(tables(plan, summary(plan, folder, results), results)).split("\n\n"):
        if part.startswith("|"):
            assert part in page, f"{folder.name}.md has other numbers than:\n{part}"
