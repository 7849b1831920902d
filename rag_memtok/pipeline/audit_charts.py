"""The charts of the audit page, as inline SVG."""

import math
from collections.abc import Iterator, Sequence

from rag_memtok.memory.reconstruct import ASSISTED_SHARE
from rag_memtok.pipeline.audit import Audit

WIDTH, HEIGHT, FLOOR = 460, 150, 24  # of a histogram; FLOOR is kept for its axis
BINS = 30


def charts(audit: Audit, tau: float) -> str:
    """Histograms of the smallest margin and of the share of pins, chunk by chunk.

    A wrong decode has no margin worth drawing.
    """
    verdicts = [
        chunk.verdict
        for chunk in audit.recited
        if chunk.verdict.kind in ("exact", "pinned", "assisted", "fragile")
    ]
    if not verdicts:
        return ""
    margins = [verdict.margin for verdict in verdicts if math.isfinite(verdict.margin)]
    shares = [
        100 * (verdict.corrections + verdict.safeties) / (verdict.tokens + 1)
        for verdict in verdicts
    ]
    margins_caption = (
        f"Smallest lead of a right, unpinned token in each of {len(margins)} chunks, in logits. "
        f"Dashed: tau, {tau:g}."
    )
    if len(margins) < len(verdicts):
        margins_caption += f" {len(verdicts) - len(margins)} more are pinned throughout."
    pins_caption = (
        f"Pins of each of {len(verdicts)} chunks, in % of its tokens. Dashed: "
        f"{ASSISTED_SHARE:.0%}; over that, corrections make it assisted."
    )
    pictures = [
        ("Margins", histogram(margins, tau), margins_caption),
        ("Pins", histogram(shares, 100 * ASSISTED_SHARE), pins_caption),
    ]
    figures = "".join(
        f"<figure><h3>{title}</h3>{svg}<figcaption>{caption}</figcaption></figure>"
        for title, svg, caption in pictures
    )
    return f'<h2>Chunk by chunk</h2><div class="charts">{figures}</div>'


def histogram(values: Sequence[float], mark: float) -> str:
    """Values from 0 on as bars, with a dashed line at `mark`.

    The last bar has what is beyond the axis, too.
    """
    ranked = sorted(values) or [0.0]
    top = round_up(max(ranked[math.ceil(0.98 * (len(ranked) - 1))], 1.5 * mark))
    heights = [0] * BINS
    for value in values:
        heights[min(int(value / top * BINS), BINS - 1)] += 1
    floor, at = HEIGHT - FLOOR, f"{WIDTH * mark / top:.1f}"
    parts = (
        *bars(heights, top),
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>',
        f'<line class="mark" x1="{at}" x2="{at}" y1="14" y2="{floor}"/>',
        *ticks(top, "+" if ranked[-1] > top else ""),
        f'<text x="{WIDTH}" y="10" text-anchor="end">tallest bar: {max(heights)}</text>',
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="histogram">{"".join(parts)}</svg>'
    )


def bars(heights: Sequence[int], top: float) -> Iterator[str]:
    """Yields the bars of a histogram up to `top`; what each stands for is its tooltip."""
    room, step = HEIGHT - FLOOR - 14, WIDTH / BINS
    for index, count in enumerate(heights):
        if count:
            tall = room * count / max(heights)
            place = (
                f'x="{index * step + 1:.1f}" y="{HEIGHT - FLOOR - tall:.1f}" '
                f'width="{step - 2:.1f}" height="{tall:.1f}"'
            )
            yield (
                f'<rect class="bin" {place}><title>{index * top / BINS:.3g} to '
                f"{(index + 1) * top / BINS:.3g}: {count}</title></rect>"
            )


def ticks(top: float, beyond: str) -> Iterator[str]:
    """Yields the numbers under a histogram."""
    for part, anchor in (
        (0, "start"),
        (0.25, "middle"),
        (0.5, "middle"),
        (0.75, "middle"),
        (1, "end"),
    ):
        name = f"{top * part:.3g}{beyond if part == 1 else ''}"
        yield f'<text x="{WIDTH * part:.0f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{name}</text>'


def round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 and 10 times a power of ten: quarters of it have short names."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))
