"""Pictures of measurements, as PNG: lines with intervals. Needs the extra "figures"."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a chart: points from left to right, and how sure each is.

    `low` and `high` say how sure (empty: not said). `dashed`: a baseline.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart: what its axes measure (with units), and its lines.

    `log_x` is the base of a logarithmic x axis, 0: a linear one.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: int = 0
    log_y: bool = False


def require_drawing() -> None:
    """Raises UsageError where matplotlib is not installed: before hours of work, not after them."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError(
            "drawing needs matplotlib", remedy='pip install "rag-memtok[figures]"'
        ) from None


def draw(chart: Chart, path: Path) -> None:
    """Writes `chart` as a PNG of about 1000 x 620 pixels.

    Raises:
        UsageError: matplotlib is not installed.
    """
    require_drawing()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.subplots()
    for line in chart.lines:
        (drawn,) = axes.plot(
            line.x,
            line.y,
            marker=None if line.dashed else "o",
            linestyle="--" if line.dashed else "-",
            label=line.name,
        )
        if line.low:
            axes.fill_between(
                line.x, line.low, line.high, alpha=0.15, color=drawn.get_color(), linewidth=0
            )
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.set_xscale("log", base=chart.log_x) if chart.log_x else None
    axes.set_yscale("log") if chart.log_y else None
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144, format="png")
