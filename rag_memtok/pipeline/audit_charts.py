"""The charts of the audit page, as inline SVG."""

import math
from collections.abc import Iterator, Sequence

from rag_memtok.memory.reconstruct import ASSISTED_SHARE
from rag_memtok.pipeline.audit import Audit

WIDTH, HEIGHT, FLOOR = 460, 150, 24  # of a histogram; FLOOR is kept for its axis
BINS = 30


def charts(found: Audit, tau: float) -> str:
    """How far the right tokens lead, and how much is pinned, chunk by chunk.

    A wrong decode has no lead worth drawing.
    """
    right = [
        one.verdict
        for one in found.recited
        if one.verdict.kind in ("exact", "pinned", "assisted", "fragile")
    ]
    if not right:
        return ""
    margins = [one.margin for one in right if math.isfinite(one.margin)]
    shares = [100 * (one.corrections + one.safeties) / (one.tokens + 1) for one in right]
    left = (
        f"Smallest lead of a right, unpinned token in each of {len(margins)} chunks, in logits. "
        f"Dashed: tau, {tau:g}."
    )
    if len(margins) < len(right):
        left += f" {len(right) - len(margins)} more are pinned throughout."
    parts = (
        f"Pins of each of {len(right)} chunks, in % of its tokens. Dashed: "
        f"{ASSISTED_SHARE:.0%}; over that, corrections make it assisted."
    )
    pictures = [
        ("Margins", histogram(margins, tau), left),
        ("Pins", histogram(shares, 100 * ASSISTED_SHARE), parts),
    ]
    figures = "".join(
        f"<figure><h3>{title}</h3>{svg}<figcaption>{words}</figcaption></figure>"
        for title, svg, words in pictures
    )
    return f'<h2>Chunk by chunk</h2><div class="charts">{figures}</div>'


def histogram(values: Sequence[float], mark: float) -> str:
    """Values from 0 on as bars, with a dashed line at `mark`.

    The last bar has what is beyond the axis, too.
    """
    ranked = sorted(values) or [0.0]
    top = rounded_up(max(ranked[math.ceil(0.98 * (len(ranked) - 1))], 1.5 * mark))
    heights = [0] * BINS
    for value in values:
        heights[min(int(value / top * BINS), BINS - 1)] += 1
    floor, at = HEIGHT - FLOOR, f"{WIDTH * mark / top:.1f}"
    drawn = (
        *bars(heights, top),
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>',
        f'<line class="mark" x1="{at}" x2="{at}" y1="14" y2="{floor}"/>',
        *ticks(top, "+" if ranked[-1] > top else ""),
        f'<text x="{WIDTH}" y="10" text-anchor="end">tallest bar: {max(heights)}</text>',
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="histogram">{"".join(drawn)}</svg>'
    )


def bars(heights: Sequence[int], top: float) -> Iterator[str]:
    """The bars of a histogram up to `top`; what each stands for is shown under the pointer."""
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
    """The numbers under a histogram."""
    for part, anchor in (
        (0, "start"),
        (0.25, "middle"),
        (0.5, "middle"),
        (0.75, "middle"),
        (1, "end"),
    ):
        name = f"{top * part:.3g}{beyond if part == 1 else ''}"
        yield f'<text x="{WIDTH * part:.0f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{name}</text>'


def rounded_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 and 10 times a power of ten.

    It makes an axis whose quarters have short names.
    """
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))
