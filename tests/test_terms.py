"""What is there is found by the words people use: as terms, in names and headings, in samples."""

from pathlib import Path

import pytest
from benchmarks_stores import stored
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.config import Retrieve
from rag_memtok.documents.headings import headings_above
from rag_memtok.documents.loaders import LOADERS
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.retrieval.index import open_index
from rag_memtok.retrieval.search import search
from rag_memtok.store.stems import MARK, detect_language
from rag_memtok.store.store import open_store
from rag_memtok.store.terms import query_terms, query_words, terms_of

CASES = Path(__file__).parent / "cases"


def shared(asked, text):
    """The terms that a question and a text have in common, before English endings."""
    wanted = {term for word in query_words(asked) for term in query_terms(word)}
    return wanted & set(terms_of(text).split())


@pytest.mark.parametrize(
    "asked, text",
    [
        ("office", "the oﬃce"),
        ("flat", "a ﬂat rate"),
        ("Donaudampfschiff", "Donau\u00addampf\u200bschiff"),
        ("information", "the infor-\r\n  mation"),
        ("information", "the infor\u00ad\nmation"),
        ("known", "a well-\nknown one"),
        ("ABC", "ＡＢＣ"),
        ("istanbul", "İSTANBUL"),
        ("ISTANBUL", "İstanbul"),
        ("ığdır", "IĞDIR"),
        ("STRASSE", "Straße"),
        ("cancion", "la canción"),
        ("header", "parseHttpHeader"),
        ("chunkTokens", "chunk_tokens"),
        ("HTTP server", "HTTPServer"),
        ("2024", "TaxReturn2024.pdf"),
        ("mouse", "The mice ate it"),
        ("child", "children"),
        ("tenant", "the tenant’s deposit"),
        ("email", "an e-mail"),
        ("What does the WHO say?", "the WHO says"),
        ("Who works in IT?", "IT department"),
        ("What happened in the US in May?", "May in the U.S. was warm"),
        ("密码", "无线网络的密码是"),
        ("canciones", "Se sabe la canción que los niños cantan por la noche"),
        ("gato", "Los gatos de la casa duermen en el tejado"),
        ("Haus", "Die Häuser an der Elbe sind noch nicht verkauft"),
        ("Verträge", "Der Vertrag ist noch nicht von der Bank"),
        ("cheval", "Les chevaux sont dans le pré avec une vache"),
        ("кошка", "Кошки не спят на крыше, но и не бегают по ней"),
        ("猫", "我的猫"),
        ("ราคา", "ราคาเท่าไร"),
        ("사과", "사과를 샀다"),
        ("שלום", "שָׁלוֹם"),
        ("हिन्दी", "हिन्दी में"),
    ],
)
def test_a_word_is_found_however_it_is_written(asked, text):
    found = shared(asked, text)
    prefix = {term for word in query_words(asked) for term in query_terms(word) if term[-1] == "*"}
    assert found or any(
        term.startswith(one[:-1]) for one in prefix for term in terms_of(text).split()
    )


@pytest.mark.parametrize(
    "text",
    [
        "The cats of the house sleep on the roof, and the dogs do not.",
        "Rick Belden, John O'Hurley as Linda, John O'Hurley as Matt, as Craig, as a lawyer",
        "prices 12 14 15",
        "",
    ],
)
def test_an_english_text_has_the_terms_it_had_without_other_languages(text):
    assert detect_language(text.lower().replace(",", "").split()) == ""
    assert MARK not in terms_of(text)


PAGE = """<html><head><title>Moor & Sons</title></head><body>
<nav>Home</nav><h1>Pumps</h1><p>We make <b>pumps</b>.</p>
<h2>The <em>HX-220</em>
 pump</h2><p>It costs 90 euros.</p><h2>Spares</h2><table><tr><td>Seal</td><td>4</td></tr></table>
<h1></h1><h1>Contact</h1><p>Ring us.</p></body></html>"""


def test_the_headings_of_a_page_stand_above_its_places():
    (page,) = LOADERS[".html"].extract(PAGE.encode(), "utf-8")
    places = [page.text.index(what) for what in ("Home", "make", "90", "Seal", "Ring")]
    assert places == sorted(places)
    assert headings_above("a.html", page.text, places, page.headings) == [
        "Moor & Sons",
        "Moor & Sons > Pumps",
        "Moor & Sons > Pumps > The HX-220 pump",
        "Moor & Sons > Pumps > Spares",
        "Moor & Sons > Contact",
    ]


def test_the_stems_of_one_language_are_not_those_of_another():
    spanish = set(terms_of("Los gatos de la casa no son los de la calle").split())
    assert {one for one in spanish if MARK in one} & set(query_terms("gato"))
    italian = set(terms_of("Il gatto della casa non è il gatto di una via").split())
    assert not {one for one in italian | spanish if MARK in one} & set(query_terms("house"))
    assert not {one for one in italian if MARK in one} & {one for one in spanish if MARK in one}


@pytest.mark.parametrize(
    "asked, text",
    [
        ("Who is it?", "who is it"),
        ("WHO IS IT?", "who is it"),
        ("What may the IT do to us?", "it may do so to us"),
        ("May I come in May?", "it may be"),
        ("密码", "密和码"),
        ("newyorker", "New-\nYorker"),
    ],
)
def test_what_is_another_word_is_not(asked, text):
    assert not shared(asked, text)


@given(st.text())
def test_any_text_has_terms_and_gives_the_same_ones_again(text):
    terms = terms_of(text)
    assert terms == terms_of(text) and not any(term[-1] == "*" for term in terms.split())
    for word in query_words(text):
        assert all(term and " " not in term for term in query_terms(word))


# --- headings


MARKDOWN = """---
title: Crib
tags: [a]
---

# Crib

Intro

| Tool | Price |
| --- | --- |
| Saw | 5 |
| Axe | 6 |

Lending
-------

```sh
# no heading
```

Two weeks.

### Fines ###

50 cents.
"""


def above(file, text, *words):
    places = sorted(text.index(word) for word in words)
    return headings_above(file, text, places)


def test_headings_of_markdown():
    assert above("a.md", MARKDOWN, "Intro", "| Axe", "Two weeks", "50 cents") == [
        "Crib",
        "Crib > Tool | Price",
        "Crib > Lending",
        "Crib > Lending > Fines",
    ]
    assert headings_above("a.md", MARKDOWN, [0]) == [""]
    assert headings_above("a.md", "text\n\n# Lamp\n", [4]) == ["Lamp"]  # begins with it


@pytest.mark.parametrize(
    "line, title",
    [
        ("## Lamp", "Lamp"),
        (" # a \t b#c ### \t", "a b#c"),
        ("# C#", "C"),
        ("# # #", "#"),
        ("###### Lamp", "Lamp"),
        ("####### Lamp", ""),
        ("#1 lamp", ""),
        ("    # Lamp", ""),
        ("##", ""),
    ],
)
def test_a_heading_with_number_signs(line, title):
    assert headings_above("a.md", f"{line}\nHERE", [len(line) + 1]) == [title]


@pytest.mark.parametrize(
    "text, title",
    [
        (f"# a{' ' * 100_000}b\n", "a b"),
        (f"|a|b|\n|{'-' * 3_000_000}x\n", ""),
        (f"a\n|{'-' * 3_000_000}x\n", ""),
    ],
)
def test_no_line_of_markdown_takes_more_than_linear_time(text, title):
    """A pattern that tries every way to part such a line would not end here."""
    assert headings_above("a.md", text, [len(text)]) == [title]


def test_white_space_is_passed_over_once_however_many_places_are_in_it():
    text = f"# Lamp\n{' ' * 3_000_000}\n# Oil\n"
    starts = range(0, len(text), 8)
    assert set(headings_above("a.md", text, starts)) == {"Lamp", "Oil"}


@pytest.mark.parametrize(
    "file, text, expected",
    [
        ("a.rst", "====\nBook\n====\n\nLamp\n====\n\nx\n\nOil\n---\n\nHERE", "Book > Lamp > Oil"),
        ("a.txt", "Lamp\n----\nHERE", "Lamp"),
        ("a.tex", "\\section{Fan}\n\\subsection*{Belt}\nHERE", "Fan > Belt"),
        ("a.adoc", "= Book\n\n== Lamp\n\nHERE", "Book > Lamp"),
        ("a.org", "* Book\n** Lamp\nHERE", "Book > Lamp"),
        ("a.csv", 'tool,"price"\nsaw,5\nHERE,6', "tool | price"),
        ("a.xlsx", "## Tools\n\n| Tool | Price |\n|---|---|\n| HERE | 5 |", "Tools > Tool | Price"),
        ("a.html", "HX-220\n\nA probe.\n\nHERE", "HX-220"),
        ("a.eml", "Subject: Rent\nFrom: a@example.org\n\nHERE", "Rent"),
        ("a.html", "a sentence " * 20 + "\n\nHERE", ""),
        ("a.py", "# no heading\nHERE", ""),
    ],
)
def test_headings_of_other_texts(file, text, expected):
    assert above(file, text, "HERE") == [expected]


# --- the samples


@pytest.fixture(scope="module")
def mini():
    return load_embedder("mini")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A store of each folder of samples."""
    folder = tmp_path_factory.mktemp("samples")
    return {
        name: stored(folder / name, CASES / name) for name in ("titles", "words", "cjk", "tables")
    }


def hits(folder, mini, question, **settings):
    with open_store(folder, write=False) as store:
        found = search(store, open_index(store), mini, question, Retrieve(**settings))
        return [(hit.occurrences[0].path, store.text(hit.chunk_id)) for hit in found]


@pytest.mark.parametrize(
    "folder, question, file, value",
    [
        ("titles", "What is the serial number of the oven?", "oven.txt", "91-K"),
        ("titles", "When was the fridge bought?", "fridge.txt", "2021"),
        ("words", "battery?", "plural.md", "batteries"),
        ("words", "warranty?", "plural.md", "Warranties"),
        ("words", "mouse?", "plural.md", "mice"),
        ("words", "Donaudampfschifffahrt?", "shy.html", "neun"),
        ("words", "İSTANBUL", "tr.md", "saat dokuzda"),
        ("words", "Istanbul", "tr.md", "saat dokuzda"),
        ("words", "STRASSENBAHN", "de.md", "Linie 4"),
        ("cjk", "房租多少钱？", "租房.md", "三千元"),
        ("cjk", "无线网络的密码是什么？", "网络.md", "咖啡蛋糕"),
        ("cjk", "去年结了多少苹果？", "花园.md", "四十公斤"),
        ("tables", "What does a drawknife cost?", "tools.md", "55.00"),
        ("tables", "How many dovetail saws are there?", "tools.md", "| 3 |"),
    ],
)
def test_the_samples_right_value_comes_first(samples, mini, folder, question, file, value):
    ((path, text),) = hits(samples[folder], mini, question, k=1)
    assert path == file and value in text.replace("\u00ad", "")


def test_a_tables_header_goes_with_every_chunk_of_it(samples):
    with open_store(samples["tables"], write=False) as store:
        (document,) = store.documents()
        places = store.document_chunks(document.root, document.path)
        rows = [one for one in places if (store.text(one.chunk_id) or "").startswith("| ")]
        assert rows and {one.headings for one in rows} == {
            "Tool crib > Tool | Count | Price EUR | Place"
        }
