"""Document -> Chunks.

The chunks joined are the document, character for character, and none is over its budget of the LM's
own tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from rag_memtok.datatypes import Chunk, Document
from rag_memtok.errors import ChunkDoesNotFit, UsageError

Count = Callable[[str], int]
Splitter = TextSplitter | MarkdownSplitter

# written as such, or extracted as such
MARKDOWN = ".md .markdown .mdx .docx .pptx .xlsx .epub .odt .ods .ipynb".split()
SPLITTERS: dict[str, type[TextSplitter] | type[MarkdownSplitter]] = dict.fromkeys(
    MARKDOWN, MarkdownSplitter
)

# The splitter is quadratic in a text without spaces (65,536 Chinese characters: 35 s), so it sees
# at most this many characters a time for each token of the budget. Measured on English: the same
# number of chunks as in one piece, and a quarter faster.
WINDOW_PER_TOKEN = 16
SMALLEST_WINDOW = 512


def split(document: Document, capacity: int, count: Count) -> tuple[Chunk, ...]:
    """The chunks of `document`, cut where its structure allows, each as full as that permits.

    The structure is headings, paragraphs, sentences, words.

    Args:
        document: its text may be anything; an empty one has no chunks.
        capacity: the most tokens of a chunk, 1 or more; 4 always suffice for a byte-level
            tokenizer.
        count: the LM's tokens of a text alone, without BOS or end, control words such as
            `<|eot_id|>` taken as plain text.

    Returns:
        Chunks in order whose texts joined are `document.text`, with `count(chunk.text) <= capacity`
        for each.

    Raises:
        UsageError: a capacity under 1.
        ChunkDoesNotFit: one character alone takes more than `capacity` tokens.

    Cost: linear; 3 s for 1 MB of English (5 calls to `count` a chunk), up to 35 s for 1 MB of text
        without spaces.
    """
    if capacity < 1:
        raise UsageError(f"a chunk of {capacity} tokens; valid: 1 or more")
    kind = SPLITTERS.get(PurePosixPath(document.file).suffix.lower(), TextSplitter)
    splitter = kind.from_callback(count, capacity, trim=False)
    pieces = split_windows(
        document.text, splitter, max(WINDOW_PER_TOKEN * capacity, SMALLEST_WINDOW)
    )
    fitting = (part for piece in pieces for part in halve(piece, capacity, count))
    return tuple(make_chunks(document, join_scraps(fitting, capacity, count)))


def format_locator(document: Document, start: int, end: int) -> str:
    """The place where characters `start` to `end` stand: "line 12", "lines 12-18".

    White space at the edges does not count.
    """
    text = document.text[start:end]
    if text.strip():
        start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
    first, last = document.locate(start), document.locate(max(end - 1, start))
    if first == last:
        return first
    kind, _, number = first.rpartition(" ")
    other, _, final = last.rpartition(" ")
    counted = kind == other and number.isdigit() and final.isdigit()
    return f"{kind}s {number}-{final}" if counted else f"{first} - {last}"


def split_windows(text: str, splitter: Splitter, window: int) -> Iterator[str]:
    """Yields stretches of `text` that join to it.

    The last one of a window is cut again with what follows, as its end is the window's.
    """
    start = 0
    while start < len(text):
        view = text[start : start + window]
        pieces = [piece for piece in splitter.chunks(view) if piece]
        if "".join(pieces) != view:
            pieces = [view]  # never seen; `halve` then cuts it without regard to its structure
        if start + window < len(text) and len(pieces) > 1:
            pieces.pop()
        yield from pieces
        start += sum(map(len, pieces))


def halve(text: str, capacity: int, count: Count) -> Iterator[str]:
    """Yields `text` if it fits, else its halves, theirs and so on.

    What the splitter cannot do is cut hard.

    Raises:
        ChunkDoesNotFit: one character alone takes more than `capacity` tokens.
    """
    tokens = count(text)
    if tokens <= capacity:
        yield text
        return
    if len(text) == 1:
        raise ChunkDoesNotFit(
            f"the character {ascii(text)} takes {tokens} tokens, a chunk has {capacity}",
            remedy=f"set chunk_tokens to {tokens} or more",
        )
    middle = len(text) // 2
    yield from halve(text[:middle], capacity, count)
    yield from halve(text[middle:], capacity, count)


def join_scraps(pieces: Iterable[str], capacity: int, count: Count) -> Iterator[str]:
    """Yields `pieces` with scraps joined to a neighbour.

    It is the one before first, where both fit into one chunk.

    A scrap is white space alone, or under an eighth of the budget (often a heading whose section is
    a chunk of its own): it would cost a memory and a place among the hits, and tell nothing.
    """

    def is_scrap(piece: str) -> bool:
        return piece.isspace() or count(piece) * 8 < capacity

    held = ""
    for piece in pieces:
        if held and not ((is_scrap(piece) or is_scrap(held)) and count(held + piece) <= capacity):
            yield held
            held = ""
        held += piece
    if held:
        yield held


def make_chunks(document: Document, pieces: Iterable[str]) -> Iterator[Chunk]:
    """Yields `pieces` as chunks of `document` with their spans.

    The spans are contiguous from its first character to its last.
    """
    start = 0
    for piece in pieces:
        end = start + len(piece)
        assert document.text.startswith(piece, start), (
            f"chunk at {start} is not the document's text"
        )
        yield Chunk(text=piece, start=start, end=end, locator=format_locator(document, start, end))
        start = end
    assert start == len(document.text), f"chunks end at {start} of {len(document.text)} characters"
