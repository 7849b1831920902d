"""The audit as a page.

It says what the audit found, quotes hostile documents without obeying them, and looks right in
light and dark.
"""

import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from html.parser import HTMLParser

import pytest
import toy
from matplotlib.image import imread

from rag_memtok.cli import app
from rag_memtok.config import Config
from rag_memtok.datatypes import Verdict
from rag_memtok.errors import UsageError
from rag_memtok.memory.codec import codec_named
from rag_memtok.model import lm
from rag_memtok.pipeline import api
from rag_memtok.pipeline.audit_charts import histogram, round_up
from rag_memtok.pipeline.audit_report import TITLE, article, kind, pieces, to_html
from rag_memtok.pipeline.reconstruction import Reconstructed
from rag_memtok.settings import updated
from rag_memtok.store.schema import insert
from rag_memtok.store.store import open_store

HOSTILE = (
    "<script>document.title='owned'</script>\x1b[31m\u202e <img src=http://example.org/x "
    "onerror=alert(1)> \"'&amp;"
)
TEXTS = {
    "lamp.txt": "The lamp of the harbour is red.",
    "<b>fan&.txt": HOSTILE,
    "soup.txt": "Se hornea media hora.\n",
}
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars --window-size=900,1400"
).split()


class Page(HTMLParser):
    """What a reader sees, the tags that are open or crossed, and the chunks shown, by verdict."""

    def __init__(self, source):
        super().__init__()
        self.words, self.open, self.crossed, self.tags, self.attributes = [], [], [], [], []
        self.feed(source)
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(name, value) for name, value in attributes]
        if tag not in ("meta", "td", "th"):  # whose ends may be left out
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory, model_folder):
    """A store whose memories were given one step: assisted, all of them."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "docs").mkdir()
    for name, text in TEXTS.items():
        (folder / "docs" / name).write_text(text, newline="")
    dials = {
        "store": str(folder / "store"),
        "model.id": str(model_folder),
        "model.threads": 1,
        "model.device": "cpu",
    }
    quick = {
        "memorize.tokens_per_vector": 4,
        "memorize.seconds_per_chunk": 0.0,
        "documents.chunk_tokens": 256,
    }
    config = updated(Config(), {**dials, **quick, "memorize.steps": 1})
    assert api.ingest([folder / "docs"], config).verdicts == {"assisted": 3}
    return folder, config


@pytest.fixture
def planted(original, tmp_path):
    """A copy of the store with a wrong memory of soup.txt, and an audit's page of it."""
    folder, config = original
    shutil.copytree(folder / "store", tmp_path / "store")
    with open_store(tmp_path / "store", write=False) as store:
        store_id, ids = store.store_id, store.chunk_ids()
        wanted = next(
            number for number, chunk in enumerate(ids) if store.text(chunk) == TEXTS["soup.txt"]
        )
        record = store.record(ids[wanted])
    with closing(sqlite3.connect(tmp_path / "store" / "store.db", isolation_level=None)) as db:
        vectors = codec_named(record.codec).pack(
            -codec_named(record.codec).unpack(record.packed, record.shape)
        )
        insert(db, store_id, "vectors", (wanted + 1, record.codec, *record.shape, vectors))
        insert(db, store_id, "pins", (wanted + 1, b""))
        insert(db, store_id, "manifest", ("transformers", "0.0"))
    return tmp_path, updated(config, {"store": str(tmp_path / "store")})


def written(folder, config, **options):
    audit = api.verify(config, page=folder / "audit.html", **options)
    return audit, (folder / "audit.html").read_text(encoding="utf-8")


def test_the_page_says_what_the_audit_found(planted):
    folder, config = planted
    audit, source = written(folder, config)
    page = Page(source)
    assert audit.counts == {"assisted": 2, "mismatch": 1} and audit.exit_code == 5
    assert (page.crossed, page.open) == ([], [])
    for expected in (
        audit.sentence,
        "assisted 2",
        "mismatch 1",
        "3 of 3",
        "2 of 3",
        audit.profile,
        audit.findings[0].reason,
    ):
        assert expected in page.text
    assert page.text.count("identical") == 2 and page.text.count("not proven: not all") == 1
    assert page.tags.count("article") == 3 and page.tags.count("svg") == 2
    # transformers is not what it was
    assert ("class", "differs") in page.attributes and page.text.count("0.0") >= 1
    assert (folder / "audit.html").stat().st_mode & 0o777 == 0o600


def test_of_a_sample_the_page_counts_the_documents_that_were_checked(original, tmp_path):
    audit, source = written(tmp_path, original[1], share=0.3)
    assert audit.documents_checked == 1 and "1 of 1 checked, 3 in all" in Page(source).text


def test_what_was_stored_can_be_read_off_the_difference(planted):
    """Without <ins> and with <del>, a failing chunk is what was stored.

    The other way round, it is what was decoded.
    """
    folder, config = planted
    audit, source = written(folder, config)
    articles = re.findall("<article>.*?<pre>(.*?)</pre></article>", source, re.DOTALL)
    stored = Page(re.sub("<ins>.*?</ins>\n*", "", articles[0], flags=re.DOTALL)).text.replace(
        "↵", ""
    )
    assert stored == TEXTS["soup.txt"]
    failed = next(one for one in audit.recited if one.verdict.kind == "mismatch")
    said = Page(re.sub("<del>.*?</del>\n*", "", articles[0], flags=re.DOTALL)).text.replace("↵", "")
    assert said == Page(to_html(lm.load(config.model).decode(failed.tokens))).text != stored
    assert {Page(one).text.replace("↵", "") for one in articles[1:]} == {
        TEXTS["lamp.txt"],
        Page(to_html(HOSTILE)).text,
    }
    pins = sum(
        one.verdict.corrections + one.verdict.safeties
        for one in audit.recited
        if one.verdict.kind == "assisted"
    )
    assert 0 < len(re.findall('<mark class="(?:correction|safety)" title="token', source)) <= pins


def test_a_hostile_document_is_quoted_not_obeyed(planted):
    folder, config = planted
    _, source = written(folder, config)
    page = Page(source)
    assert not {"script", "img", "b", "link", "iframe"} & set(page.tags)
    assert not [
        name
        for name, _ in page.attributes
        if name.startswith("on") or name in ("src", "href", "action", "srcset")
    ]
    assert "url(" not in source and "@import" not in source and "default-src 'none'" in source
    assert "\x1b" not in source and "\u202e" not in source and r"\x1b[31m\u202e" in page.text
    assert "<b>fan&.txt" in page.text


def test_without_text_what_was_decoded_is_shown_alone(original, tmp_path):
    folder, config = original
    config = updated(config, {"store": str(tmp_path / "store"), "memorize.keep_text": False})
    api.ingest([folder / "docs"], config)
    _, source = written(tmp_path, config)
    assert (
        source.count("no text is kept to compare it with") == 3
        and "<del>stored, but" in source
        and source.count("<del>") == 1
    )
    assert TEXTS["lamp.txt"] in Page(source).text


def test_a_quick_check_and_a_foreign_model_make_a_page_too(planted, tmp_path):
    folder, config = planted
    with closing(sqlite3.connect(folder / "store" / "store.db", isolation_level=None)) as db:
        db.execute("UPDATE keys SET packed = zeroblob(length(packed)) WHERE chunk = 1")
    quick, source = written(folder, config, structure_only=True)
    assert (
        Page(source).text.count("damaged") >= len(quick.findings) == 1
        and "<svg" not in source
        and "<article>" not in source
    )
    other = toy.save(tmp_path / "other", seed=5)
    foreign, source = written(folder, updated(config, {"model.id": str(other)}))
    assert foreign.counts == {"incomparable": 3}
    assert "incomparable 3" in Page(source).text and source.count('class="differs"') >= 2


def test_no_folder_for_the_page_is_said_before_the_audit(planted):
    folder, config = planted
    with pytest.raises(UsageError, match="no folder"):
        api.verify(
            config,
            page=folder / "nowhere" / "audit.html",
            on_progress=lambda at: pytest.fail("it began"),
        )


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("elsewhere.html"),
        os.mkfifo,
        lambda path: path.write_text("<title>My notes</title>"),
        lambda path: path.write_bytes(b""),
    ],
)
def test_what_is_no_report_is_not_replaced_and_that_is_said_before_the_audit(planted, put):
    folder, config = planted
    put(folder / "audit.html")
    with pytest.raises(UsageError, match="in the way"):
        api.verify(
            config, page=folder / "audit.html", on_progress=lambda at: pytest.fail("it began")
        )
    assert not (folder / "elsewhere.html").exists()


def test_over_a_file_that_all_could_read_the_page_is_private_again(planted):
    folder, config = planted
    (folder / "audit.html").write_bytes(TITLE)  # an earlier one
    (folder / "audit.html").chmod(0o644)
    with (folder / "audit.html").open() as reader:
        _, source = written(folder, config)
        assert reader.read() == TITLE.decode()  # opened before, and so not the page
    assert (
        "Reconstruction audit" in source and (folder / "audit.html").stat().st_mode & 0o777 == 0o600
    )


def test_a_verdict_and_an_id_are_quoted_too(planted):
    """No column of a store that somebody else made can write into the page."""
    folder, config = planted
    evil = "<img src=x><meta http-equiv=refresh content='0;url=https://example.org'>\""
    assert not {"img", "meta"} & set(Page(kind(evil)).tags) and Page(kind(evil)).text == evil
    assert [name for name, _ in Page(kind(evil)).attributes] == ["class", "style"]
    with open_store(folder / "store", write=False) as store:
        one = Reconstructed(chunk_id="<img src=x>", verdict=Verdict("damaged", 0), text=None)
        assert "img" not in Page(article(store, lm.load(config.model), one)).tags


def test_a_histogram_has_every_value_in_a_bar():
    values = [0.0, 0.05, 0.06, 0.3, 0.3, 7.0, *[0.2] * 94]
    source = histogram(values, 0.05)
    assert sum(int(count) for count in re.findall(r"<title>[^<]*: (\d+)</title>", source)) == len(
        values
    )
    assert "+</text>" in source and "tallest bar: 94" in source  # 7.0 is beyond the axis
    assert [round_up(value) for value in (0.21, 0.4, 7.5, 10.0, 93.0)] == pytest.approx(
        [0.4, 0.4, 8, 10, 100]
    )
    assert "tallest bar: 0" in histogram([], 0.05)


def test_tokens_that_are_part_of_a_character_are_shown_together(toy_lm):
    text = "a 🫖 b — ñ"
    tokens = toy_lm.encode(text)
    parts = list(pieces(toy_lm, tokens))
    assert "".join(part for _, _, part in parts) == text and "🫖" in [
        part.strip() for _, _, part in parts
    ]
    assert [first for first, _, _ in parts] + [len(tokens)] == [0] + [end for _, end, _ in parts]


@pytest.fixture
def browser(tmp_path):
    """Runs Chromium on a page with an empty profile."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")

    def run(*options):
        command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *options]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=180, check=True
        ).stdout

    return run


def test_chromium_shows_it_in_light_and_dark(planted, browser):
    folder, config = planted
    written(folder, config)
    brightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = folder / f"{scheme}.png"
        browser(
            f"--blink-settings=preferredColorScheme={number}",
            f"--screenshot={picture}",
            (folder / "audit.html").as_uri(),
        )
        pixels = imread(picture)[..., :3]
        brightness[scheme] = float(pixels.mean())
        assert pixels.reshape(-1, 3).std() > 0.05, "the page is blank"
    assert brightness["dark"] < 0.3 and brightness["light"] > 0.8
    loaded = browser("--dump-dom", (folder / "audit.html").as_uri())
    # no script ran, nothing was swallowed
    assert "<title>Reconstruction audit</title>" in loaded and loaded.count("<article>") == 3


def test_the_command_writes_the_page_and_keeps_its_exit_code(planted):
    folder, config = planted
    command = [
        "verify",
        "--store",
        config.store,
        "--model",
        config.model.id,
        "--device",
        "cpu",
        "--report",
        str(folder / "page.html"),
    ]
    assert app.run(lambda: app.app(command, standalone_mode=False)) == 5
    assert "NOT PROVEN: 1 finding" in Page((folder / "page.html").read_text(encoding="utf-8")).text
