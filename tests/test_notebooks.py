"""The notebooks as they lie there: cells of their source that were run, outputs clean and small.

Whether these outputs are still what the cells give is not tried here: `make notebooks` runs them,
and `git diff` shows what changed.
"""

import json
from pathlib import Path

import jupytext
import pytest

SOURCES = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
FOREIGN = ["/home/", "/root/", "/Users/", "/tmp/", "/work/", "site-packages", "Traceback"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_executed_notebook_is_that_of_its_source(source: Path) -> None:
    executed = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    written = jupytext.read(source).cells
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in executed] == [
        (cell.cell_type, cell.source) for cell in written
    ]
    assert all(cell["execution_count"] for cell in executed if cell["cell_type"] == "code"), (
        "run `make notebooks`"
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_outputs_are_clean_and_small(source: Path) -> None:
    content = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    outputs = [
        output for cell in json.loads(content)["cells"] for output in cell.get("outputs", [])
    ]
    assert not [
        output
        for output in outputs
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert not [place for place in FOREIGN if place in content]
    assert len(content) < 1_000_000
