"""What an evaluation looks like: tables in Markdown, and two charts."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rag_memtok.cli import console
from rag_memtok.evaluation.figures import Chart, Line, draw

if TYPE_CHECKING:
    from rag_memtok.evaluation.metrics import Interval
    from rag_memtok.evaluation.paper import Protocol
    from rag_memtok.evaluation.paper import Row as PaperRow
    from rag_memtok.evaluation.results import Evaluation, MemoryStats, OffTopicRow, Row

KIB = 1024.0
Column = tuple[str, Callable[["Row"], str]]


def percent(value: float) -> str:
    """A share as a number of per cent."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def ranged(found: "Interval", sign: str = "") -> str:
    """A mean and its interval, in per cent."""
    if math.isnan(found.mean):
        return "-"
    return (
        f"{100 * found.mean:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"
    )


def number(value: float, digits: int = 0) -> str:
    """A number, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def cost(name: str, digits: int = 0, unit: float = 1.0) -> Callable[["Row"], str]:
    """A column of what answers cost."""
    return lambda row: "-" if row.cost is None else number(getattr(row.cost, name) / unit, digits)


COMMON: tuple[Column, ...] = (
    ("reader", lambda row: row.reader),
    ("tokens/vector", lambda row: str(row.tokens_per_vector or "-")),
)
SIZES: tuple[Column, ...] = (
    ("context", lambda row: number(row.context, 1)),
    ("prompt", lambda row: number(row.prompt, 1)),
    ("unpack ms", cost("unpack_ms")),
    ("prefill ms", cost("prefill_ms", 1)),
    ("decode ms", cost("decode_ms", 1)),
    ("KV KiB", cost("kv_bytes", 0, KIB)),
)
QUALITY: tuple[Column, ...] = (
    ("F1 [95 %]", lambda row: ranged(row.f1)),
    ("minus text [95 %]", lambda row: ranged(row.difference, "+")),
    ("of best text", lambda row: percent(row.share)),
)
ALONE: tuple[Column, ...] = (
    *COMMON,
    ("EM", lambda row: percent(row.em.mean)),
    *QUALITY,
    ("unanswerable", lambda row: percent(row.refused.mean)),
    ("numbers", lambda row: percent(row.numbers.mean)),
    ("names", lambda row: percent(row.names.mean)),
    *SIZES,
)
SEVERAL_CHUNKS: tuple[Column, ...] = (*COMMON, ("k", lambda row: str(row.k)))
AMONG: tuple[Column, ...] = (
    *SEVERAL_CHUNKS,
    *QUALITY,
    *(
        (place, lambda row, place=place: percent(row.places.get(place, math.nan)))
        for place in ("first", "middle", "last")
    ),
    ("left out", lambda row: str(row.dropped)),
    *SIZES,
)
APART: tuple[Column, ...] = (*SEVERAL_CHUNKS, *QUALITY, *SIZES)
BESIDE: tuple[Column, ...] = (
    ("before the gold text", lambda row: row.reader),
    COMMON[1],
    ("F1 [95 %]", lambda row: ranged(row.f1)),
    ("minus nothing [95 %]", lambda row: ranged(row.difference, "+")),
)


F1 = "F1, per cent"
PICTURES = {  # setting -> a picture's name and title
    "among": ("quality-against-k", "The gold chunk among others, in one prompt"),
    "apart": ("quality-against-k-apart", "The gold chunk among others, each in its own prompt"),
}


def put_markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table in Markdown whose columns are aligned for the eye, too; the first one to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            f"{cell:<{width}}" if not place else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    console.put(line(header))
    console.put(
        "|"
        + "|".join(
            "-" * (width + 2) if not place else "-" * (width + 1) + ":"
            for place, width in enumerate(widths)
        )
        + "|"
    )
    for cells in lines:
        console.put(line(cells))


def put_rows(title: str, columns: Sequence[Column], rows: Sequence["Row"]) -> None:
    """A titled table of some rows, if there are any."""
    if rows:
        console.put(f"\n{title}\n")
        put_markdown(
            [name for name, _ in columns], [[show(row) for _, show in columns] for row in rows]
        )


def put_evaluation(
    found: "Evaluation", rows: Sequence["Row"], shifts: Sequence["OffTopicRow"]
) -> None:
    """All tables: the memories, the gold chunk alone, among others, by source, off-topic harm."""
    answerable = sum(bool(golds) for golds in found.golds)
    console.put(
        f"{found.model}, template {found.template}, recipe {found.recipe}: {len(found.questions)} "
        f"questions ({len(found.questions) - answerable} that the documents do not answer) about "
        f"{len(set(found.gold))} chunks"
    )
    if halved := sum(
        bool(golds) and not whole for golds, whole in zip(found.golds, found.whole, strict=True)
    ):
        console.say(f"{halved} answers do not stand word for word in one chunk")
    if found.writings:
        console.put("\nmemories\n")
        put_markdown(WRITTEN, [writing_line(one) for one in found.writings])
    put_rows("the gold chunk alone", ALONE, [row for row in rows if row.setting == "alone"])
    put_rows(
        "the gold chunk among others, in one prompt",
        AMONG,
        [row for row in rows if row.setting == "among"],
    )
    put_rows(
        "the gold chunk among others, apart: the surest answer",
        APART,
        [row for row in rows if row.setting == "apart"],
    )
    put_sources([row for row in rows if row.setting == "alone" and row.sources])
    put_rows(
        "something irrelevant before the gold text",
        BESIDE,
        [row for row in rows if row.setting == "beside"],
    )
    if shifts:
        console.put("\nunrelated texts: nats a token after something\n")
        put_markdown(
            ("before", "tokens/vector", "nats", "more than after nothing [95 %]"),
            [shift_line(one) for one in shifts],
        )
    console.say(f"took {console.duration(found.seconds)}")


WRITTEN = (
    "tokens/vector",
    "chunks",
    "exact",
    "pinned",
    "assisted",
    "correction pins",
    "safety pins",
    "positions",
    "times fewer",
    "s a chunk",
)


def writing_line(one: "MemoryStats") -> list[str]:
    """The memories at one compression."""
    kinds = [str(one.verdicts.get(kind, 0)) for kind in ("exact", "pinned", "assisted")]
    pins = [str(one.corrections), str(one.safeties), str(one.positions), f"{one.factor:.1f}"]
    return [
        str(one.tokens_per_vector),
        str(one.chunks),
        *kinds,
        *pins,
        f"{one.seconds / one.chunks:.2f}",
    ]


def shift_line(one: "OffTopicRow") -> list[str]:
    """Unrelated texts after one kind of thing."""
    more = f"{one.more.mean:+.3f} [{one.more.low:+.3f}, {one.more.high:+.3f}]"
    return [one.before, str(one.tokens_per_vector or "-"), f"{one.nats:.3f}", more]


def put_sources(rows: Sequence["Row"]) -> None:
    """F1 by source, where the questions name theirs."""
    sources = sorted({source for row in rows for source in row.sources})
    if sources:
        console.put("\nF1 by source, the gold chunk alone\n")
        lines = [
            [
                row.reader,
                str(row.tokens_per_vector or "-"),
                *(percent(row.sources[source]) for source in sources),
            ]
            for row in rows
        ]
        put_markdown(
            ["reader", "tokens/vector", *(source or "(unnamed)" for source in sources)], lines
        )


def draw_evaluation(
    rows: Sequence["Row"], writings: Sequence["MemoryStats"], folder: Path
) -> list[Path]:
    """Draws quality against compression, and quality against k; returns the files.

    Quality against k is drawn in one prompt and apart.

    Raises:
        UsageError: matplotlib is not installed.
    """
    alone = [row for row in rows if row.setting == "alone"]
    factors = {one.tokens_per_vector: one.factor for one in writings}
    lines = [
        line_of(name, some, lambda row: factors[row.tokens_per_vector])
        for name, some in grouped(alone, lambda row: row.reader)
    ]
    flat = [row for row in alone if not row.tokens_per_vector]
    ends = (1.0, max(factors.values(), default=1.0))  # from the text itself on
    lines += [
        Line(name=row.reader, x=ends, y=(100 * row.f1.mean,) * 2, dashed=True) for row in flat
    ]
    charts = {
        "quality-against-compression": Chart(
            title="The gold chunk alone",
            x_label="text positions for one of the memory",
            y_label=F1,
            lines=lines,
            log_x=2,
        )
    }
    for setting, (name, title) in PICTURES.items():
        inside = [row for row in rows if row.setting == setting]
        charts[name] = Chart(
            title=title, x_label="chunks", y_label=F1, lines=against_k(alone, inside)
        )
    files = {folder / f"{name}.png": chart for name, chart in charts.items()}
    for path, chart in files.items():
        draw(chart, path)
    return list(files)


def against_k(alone: Sequence["Row"], inside: Sequence["Row"]) -> list[Line]:
    """A line for each reader that is among several, from one chunk on."""
    names = {label(row) for row in inside}
    reading = sorted(
        (row for row in (*alone, *inside) if label(row) in names), key=lambda row: row.k
    )
    return [
        line_of(name, some, lambda row: float(row.k))
        for name, some in grouped(reading, label, flat=True)
    ]


def label(row: "Row") -> str:
    """A reader and its compression."""
    return (
        f"{row.reader}, {row.tokens_per_vector} tokens a vector"
        if row.tokens_per_vector
        else row.reader
    )


def grouped(
    rows: Sequence["Row"], name: Callable[["Row"], str], flat: bool = False
) -> list[tuple[str, list["Row"]]]:
    """Rows by name; those that do not depend on the compression only if `flat`."""
    some = [row for row in rows if flat or row.tokens_per_vector]
    return [
        (one, [row for row in some if name(row) == one])
        for one in dict.fromkeys(name(row) for row in some)
    ]


def line_of(name: str, rows: Sequence["Row"], x: Callable[["Row"], float]) -> Line:
    """F1 in per cent with its interval, from left to right."""
    order = sorted(rows, key=x)
    y, low, high = (
        [100 * value for value in values]
        for values in zip(*((r.f1.mean, r.f1.low, r.f1.high) for r in order), strict=True)
    )
    return Line(name=name, x=[x(row) for row in order], y=y, low=low, high=high)


def put_paper(rows: Sequence["PaperRow"], protocol: "Protocol") -> None:
    """A table for each corpus, a line for each model."""
    vectors = console.counted(protocol.vectors, "vector")
    console.put(
        f"the paper's protocol: recipe {protocol.recipe}, {vectors} a text, at most "
        f"{protocol.budget} steps"
    )
    for corpus in dict.fromkeys(row.corpus for row in rows):
        own = [row for row in rows if row.corpus == corpus]
        console.put("")
        console.put(
            f"{corpus}: {own[0].texts} texts of {own[0].characters:.0f} characters on average"
        )
        lines: list[Sequence[object]] = [
            (
                "model",
                "parameters",
                "tokens",
                "accuracy",
                "exact",
                "free-running",
                "steps",
                "s/text",
                "margin",
            )
        ]
        for row in own:
            margin = "-" if row.margin is None else f"{row.margin:.3f}"
            size, exact, free = (
                f"{row.parameters / 1e6:.1f}M",
                f"{row.exact}/{row.texts}",
                f"{row.free}/{row.texts}",
            )
            lines.append(
                (
                    row.model,
                    size,
                    f"{row.tokens:.0f}",
                    f"{row.accuracy:.3f}",
                    exact,
                    free,
                    f"{row.steps:.0f}",
                    f"{row.seconds:.1f}",
                    margin,
                )
            )
        console.put_columns(lines)
