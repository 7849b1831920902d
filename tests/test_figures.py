"""Charts as PNG files."""

import sys

import pytest

from rag_memtok.errors import UsageError
from rag_memtok.evaluation.figures import Chart, Line, draw

CHART = Chart(
    title="Exact",
    x_label="tokens",
    y_label="share",
    lines=[
        Line(
            name="ours",
            x=[1.0, 2.0, 4.0],
            y=[1.0, 0.5, 0.0],
            low=[0.9, 0.4, 0.0],
            high=[1.0, 0.6, 0.1],
        ),
        Line(name="floor", x=[1.0, 4.0], y=[0.0, 0.0], dashed=True),
    ],
)


def test_a_chart_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    draw(CHART, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError) as caught:
        draw(CHART, tmp_path / "a.png")
    assert "rag-memtok[figures]" in str(caught.value.remedy)


@pytest.mark.parametrize("command", [["paper", "--docs", "docs"], ["eval", "questions.jsonl"]])
def test_that_is_said_before_anything_is_measured(command_line, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    code, out, err = command_line(*command, "--model", "no such model", "--figures", "figures")
    assert (code, out) == (2, "") and "rag-memtok[figures]" in err
