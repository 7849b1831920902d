"""The laws of cutting: nothing lost, nothing over the budget, nothing quadratic."""

import signal
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rag_memtok.datatypes import Chunk, Document, Segment
from rag_memtok.documents.scan import LOADERS
from rag_memtok.documents.split import format_locator, split
from rag_memtok.errors import ChunkDoesNotFit, UsageError


def tokenizer() -> Tokenizer:
    """A byte-level BPE whose merges make counts other than lengths.

    It has a control word that must stay plain text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("i", "n"),
        ("e", "r"),
        ("a", "n"),
        ("Ġ", "a"),
        ("Ġ", "the"),
        ("Ġ", "Ġ"),
    ]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    made = Tokenizer(
        models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges)
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|eot_id|>"])
    made.encode_special_tokens = True
    return made


TOKENIZER = tokenizer()


class Counter:
    """The tokens of a text, and how much was asked."""

    def __init__(self) -> None:
        self.calls = self.characters = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        self.characters += len(text)
        return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


def document(text: str, file: str = "a.txt") -> Document:
    starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    return Document(
        "/root",
        file,
        file,
        text,
        tuple(Segment(start, f"line {n}") for n, start in enumerate(starts, 1)),
        "text/1",
    )


def check(chunks: tuple[Chunk, ...], text: str, capacity: int) -> None:
    count = Counter()
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.start for chunk in chunks] == [0, *(chunk.end for chunk in chunks)][: len(chunks)]
    for chunk in chunks:
        assert chunk.text and chunk.text == text[chunk.start : chunk.end]
        assert count(chunk.text) <= capacity


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)
prose = st.lists(
    st.sampled_from(
        [
            "the end. ",
            "# Head\n",
            "\n\n",
            "\r\n",
            "\r",
            " ",
            "```\n",
            "- a\n",
            "é",
            "e\u0301",
            "👩‍👩‍👧",
            "<|eot_id|>",
            "\ufeff",
            "in\t",
        ]
    ),
    max_size=120,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    text=any_text | prose,
    capacity=st.integers(4, 40),
    file=st.sampled_from(["a.txt", "b.md", "c.py"]),
)
def test_chunks_join_to_the_document_within_the_budget(text, capacity, file):
    check(split(document(text, file), capacity, Counter()), text, capacity)


@pytest.mark.parametrize("file", ["a.txt", "a.md"])
def test_windows_join_as_well(file):
    text = "".join(
        f"# Part {n}\n\nThe pump of the inner ring {n} ran.\r\n\n\n   \n{'x' * (n * 7)}\n"
        for n in range(60)
    )
    assert len(text) > 10 * 512
    check(split(document(text, file), 12, Counter()), text, 12)


def test_cuts_follow_the_structure():
    text = "The first part stands here.\n\nThe second part stands here.\n\nThe third."
    chunks = split(document(text), 32, Counter())
    assert [chunk.text for chunk in chunks] == [
        "The first part stands here.\n\n",
        "The second part stands here.\n\n",
        "The third.",
    ]


def test_text_of_control_tokens_is_plain_text():
    chunks = split(document("<|eot_id|>" * 20), 16, Counter())
    check(chunks, "<|eot_id|>" * 20, 16)
    assert len(chunks) > 10  # as one token each, two chunks would do


def test_a_blank_tail_joins_its_neighbour_where_it_fits():
    for text in (
        "one two three\n\n\n",
        "\n\n\none two three",
        "aaaa bbbb cccc dddd\n\n\n\nthe the the",
    ):
        assert not [chunk for chunk in split(document(text), 24, Counter()) if chunk.text.isspace()]


def test_blanks_alone_are_kept():
    check(split(document("\n" * 5000), 8, Counter()), "\n" * 5000, 8)


@pytest.mark.parametrize("unit", ["a", "\u4e2d\u6587", " ", "e\u0301"])
def test_one_line_without_spaces_is_linear(unit):
    """Twice the text is counted at most twice as often, over twice the characters.

    It is counted, not timed: time would depend on the machine.
    """
    costs = []
    for size in (10_000, 20_000):
        count = Counter()
        check(split(document((unit * size)[:size]), 128, count), (unit * size)[:size], 128)
        costs.append((count.calls, count.characters))
    (calls, characters), (more_calls, more_characters) = costs
    assert more_calls <= 2.2 * calls and more_characters <= 2.2 * characters


def test_two_megabytes_without_a_space():
    def count(text: str) -> int:
        nonlocal seen, longest
        seen, longest = seen + len(text), max(longest, len(text))
        return len(text.encode())

    seen = longest = 0
    text = "0123456789abcdef" * 131_072
    chunks = split(document(text), 1024, count)
    assert (
        "".join(chunk.text for chunk in chunks) == text
        and max(len(chunk.text) for chunk in chunks) <= 1024
    )
    assert longest <= 16 * 1024 and seen <= 40 * len(text)


def test_what_the_splitter_leaves_too_long_is_cut_hard():
    """A counter under which joined words cost more than the splitter can foresee.

    It counts the length squared.
    """
    chunks = split(document("word " * 40), 30, lambda text: len(text) ** 2)
    assert "".join(chunk.text for chunk in chunks) == "word " * 40
    assert max(len(chunk.text) for chunk in chunks) <= 5


def test_a_character_over_the_budget_is_refused():
    with pytest.raises(ChunkDoesNotFit, match=r"U0001f600.*4 tokens.*chunk has 3"):
        split(document("ab 😀"), 3, Counter())
    with pytest.raises(UsageError, match="1 or more"):
        split(document("ab"), 0, Counter())


@pytest.mark.parametrize("file", ["a.txt", "a.md"])
@pytest.mark.parametrize("at", [1, 2, 9])
def test_an_interrupt_while_the_splitter_counts_ends_as_an_interrupt(file, at):
    """Older splitters made a panic of it, that is a bug and a traceback."""

    def interrupt(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code is Counter.__call__.__code__
        if calls == at:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    calls = 0
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            split(document("the end. " * 40, file), 12, Counter())
    finally:
        sys.setprofile(None)
    assert calls == at


@pytest.mark.parametrize("error", [MemoryError, SystemExit])
def test_what_the_tokenizer_raises_comes_through_the_splitter(error):
    def count(text):
        raise error

    with pytest.raises(error):
        split(document("the end."), 12, count)


def test_locators_are_line_ranges():
    text = "\n\nfirst\nsecond\n\nthird\n"
    plain = document(text)
    assert format_locator(plain, 0, len(text)) == "lines 3-6"
    assert format_locator(plain, 2, 8) == "line 3"
    assert format_locator(plain, 0, 2) == "lines 1-2"
    assert [chunk.locator for chunk in split(plain, 100, Counter())] == ["lines 3-6"]
    pages = Document(
        "/r",
        "a.pdf",
        "a.pdf",
        "abcdef",
        (Segment(0, "page 1"), Segment(2, "page 2"), Segment(4, "cover")),
        "pdf/1",
    )
    assert format_locator(pages, 0, 4) == "pages 1-2"
    assert format_locator(pages, 0, 6) == "page 1 - cover"


def test_chunks_of_a_jsonl_record_cite_its_line():
    (_, part) = LOADERS[".jsonl"].extract(b'{"a": 1}\n{"note": "' + b"the inner ring " * 20 + b'"}')
    record = Document("/root", "t.jsonl", "t.jsonl#L2", part.text, part.segments, "jsonl/1")
    chunks = split(record, 16, Counter())
    assert len(chunks) > 2 and {chunk.locator for chunk in chunks} == {"line 2"}


def test_equal_texts_are_one_chunk_id():
    one, other = (
        split(document("the same words", file), 32, Counter()) for file in ("a.txt", "b.txt")
    )
    assert one[0].id == other[0].id


def test_an_empty_document_has_no_chunks():
    assert split(document(""), 8, Counter()) == ()
