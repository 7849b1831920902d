"""Formats that are parsed in a child process.

Tested are what they say, and that no file can do more than be skipped.
"""

import io
import os
import signal
import site
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import files
import pytest

from rag_memtok.child import Limits
from rag_memtok.config import Documents
from rag_memtok.datatypes import StoredDocument
from rag_memtok.documents.extract import KINDS, extracted, extractor, limits_for, missing
from rag_memtok.documents.scan import read, scan
from rag_memtok.documents.split import split
from rag_memtok.pipeline.compare import against, root_for
from rag_memtok.store.store import create, open_store

DIALS = Documents()
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="macOS has neither /proc nor a limit of memory"
)
REPOSITORY = Path(__file__).parent.parent


# --- what they say ---


def test_pages_are_parted_and_cited(tmp_path):
    (tmp_path / "a.pdf").write_bytes(
        files.pdf(
            "The lamp was repaired in March.", "", "Its keeper wrote a letter.", "It is green."
        )
    )
    (source,) = scan([tmp_path], DIALS).files
    (document,) = read(source, DIALS).documents
    assert (
        document.text
        == "The lamp was repaired in March.\n\nIts keeper wrote a letter.\n\nIt is green."
    )
    chunks = split(document, 6, lambda text: len(text.split()))
    assert "".join(chunk.text for chunk in chunks) == document.text
    assert [chunk.locator for chunk in chunks] == ["page 1", "page 3", "page 4"]
    (whole,) = split(document, 99, lambda text: len(text.split()))
    assert whole.locator == "pages 1-4"


def test_rows_of_sheets_are_cited_even_after_blank_ones():
    rows = [["part", "price"], ["lid", 6.5], [None, None], ["seal", 9.25]]
    found = extracted("xlsx", files.xlsx({"Spare parts": rows, "Empty": [], "2": [["last"]]}))
    places = {
        word: max(place for place in found.places if place[0] <= found.text.index(f"| {word}"))[1]
        for word in ("part", "lid", "seal", "last")
    }
    assert places == {
        "part": "sheet Spare parts row 1",
        "lid": "sheet Spare parts row 2",
        "seal": "sheet Spare parts row 4",
        "last": "sheet 2 row 1",
    }


def test_a_slide_cannot_pretend_to_be_another():
    found = extracted(
        "pptx",
        files.pptx_of(
            ("First", "one"), ("Second", "<!-- Slide number: 9 -->\nnine"), ("Third", "three")
        ),
    )
    assert [locator for _, locator in found.places] == ["slide 1", "slide 2", "slide 3"]
    assert found.text[found.places[1][0] : found.places[2][0]].count("nine") == 1


def test_the_extractor_names_the_versions_its_text_depends_on():
    import markitdown
    import pypdf

    assert extractor(
        "pdf"
    ) == f"pdf/1 pypdf {pypdf.__version__}" and f"markitdown {markitdown.__version__}" in extractor(
        "docx"
    )
    assert not any(missing(kind) for kind in KINDS)


# --- what cannot be read ---


def encrypted() -> bytes:
    """A PDF that opens only with a password."""
    import pypdf

    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(files.pdf("secret"))), io.BytesIO()
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(file)
    return file.getvalue()


def zip_bomb() -> bytes:
    """A docx of under 1 MB whose document has 600 MB."""
    file = io.BytesIO(files.docx("text"))
    with (
        zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("word/more.xml", "w") as entry,
    ):
        for _ in range(600):
            entry.write(b" " * (1 << 20))
    return file.getvalue()


def lying_zip() -> bytes:
    """A docx that says that its document of 5 MB has 100 bytes."""
    data = files.docx("x" * 5_000_000)
    size = next(
        entry.file_size
        for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()
        if "document" in entry.filename
    )
    return data.replace(struct.pack("<I", size), struct.pack("<I", 100))


BROKEN = {
    "empty.pdf": (lambda: b"", "empty"),
    "text.pdf": (lambda: b"This is no PDF at all.", "not a readable pdf file"),
    "cut.pdf": (lambda: files.pdf("one", "two")[:300], "not a readable pdf file"),
    "scanned.pdf": (lambda: files.pdf("", ""), "no text in it"),
    "encrypted.pdf": (encrypted, "encrypted"),
    "endless.pdf": (lambda: files.pdf_of([b"(a) Tj " * 20_000_000]), "not a readable pdf file"),
    "text.docx": (lambda: b"This is no zip file.", "not a readable docx file"),
    "bomb.docx": (zip_bomb, "unpacks to 600 MB, over the limit of 512 MB"),
    "lying.docx": (lying_zip, "not a readable docx file"),
    "deep.docx": (
        lambda: files.docx(body="<w:smartTag>" * 5000 + "</w:smartTag>" * 5000),
        "nested too deeply",
    ),
    "other.xlsx": (lambda: files.docx("a Word file"), "not a readable xlsx file"),
    "cut.epub": (lambda: files.epub("a", "b")[:-30], "not a readable epub file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_hostile_files_are_skipped_with_their_reason(tmp_path, name):
    make, reason = BROKEN[name]
    (tmp_path / name).write_bytes(make())
    (source,) = scan([tmp_path], DIALS).files
    result = read(source, DIALS)
    assert not result.documents and [item.path for item in result.skipped] == [name]
    assert (
        reason in result.skipped[0].reason
        and "\n" not in result.skipped[0].reason
        and len(result.skipped[0].reason) < 200
    )


def test_halves_of_characters_become_text():
    from rag_memtok.documents.extract import _cleaned

    assert _cleaned("a\ud83d\ude00b\ud800c\0") == "a😀b\ufffdc\ufffd"


# --- limits ---

# half a minute, without a limit
SLOW = files.pdf_of([b"BT /F1 12 Tf 50 700 Td" + b" (a) Tj" * 200_000 + b" ET"] * 5)


def test_the_time_limit_ends_it():
    found = extracted("pdf", SLOW, Limits(seconds=1))
    assert found.problem == "takes more than 1 s to read"
    assert limits_for(5_000_000).seconds > limits_for(5_000).seconds >= 20


@linux
def test_the_memory_limit_ends_it():
    body = files.docx(body="<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 1_000_000)
    assert (
        extracted("docx", body, Limits(memory=512 << 20)).problem
        == "takes more than 512 MB of memory to read"
    )


def test_the_output_limit_ends_it():
    data = files.pdf("a" * 5000)
    assert (
        extracted("pdf", data, Limits(output=5000)).problem
        == "its text is over the limit of 5,000 bytes"
    )
    assert len(extracted("pdf", data, Limits(output=5200)).text) == 5000


@linux
def test_an_interrupt_ends_the_child():
    script = textwrap.dedent("""
        import sys; sys.path[:0] = sys.argv[1:]
        import test_extract
        print("ready", flush=True)
        test_extract.extracted("pdf", test_extract.SLOW)
    """)
    command = [sys.executable, "-c", script, str(REPOSITORY), str(REPOSITORY / "tests")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout and parent.stdout.readline() == "ready\n"
        tasks = Path(f"/proc/{parent.pid}/task")
        while len(list(tasks.iterdir())) == 1:  # a thread feeds the child, once it runs
            time.sleep(0.05)
        children = (tasks / str(parent.pid) / "children").read_text().split()
        assert children
        parent.send_signal(signal.SIGINT)
        parent.wait(timeout=600)
        assert "KeyboardInterrupt" in parent.stderr.read()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_module_in_the_working_folder_is_never_run(tmp_path, monkeypatch):
    for name in ("pypdf", "json", "zipfile"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert extracted("pdf", files.pdf("one")).text == "one"
    assert not (tmp_path / "proof").exists()


# --- what is not installed, or another version of it ---


def test_without_the_extra_a_file_is_skipped_with_what_to_install(tmp_path):
    installed, docs = tmp_path / "installed", tmp_path / "docs"
    installed.mkdir()
    docs.mkdir()
    for folder in site.getsitepackages():
        for entry in os.scandir(folder):
            if (
                not entry.name.startswith(("pypdf", "mammoth"))
                and not (installed / entry.name).exists()
            ):
                (installed / entry.name).symlink_to(entry.path)
    (docs / "a.pdf").write_bytes(files.pdf("one"))
    (docs / "a.docx").write_bytes(files.docx("one"))
    (docs / "a.md").write_text("one")
    script = textwrap.dedent("""
        import sys; sys.path[:0] = sys.argv[1:3]
        from pathlib import Path
        from rag_memtok.config import Documents
        from rag_memtok.documents.scan import scan
        found = scan([Path(sys.argv[3])], Documents())
        skipped = (f"{item.path}: {item.reason}" for item in found.skipped)
        print([source.file for source in found.files], *skipped, sep="\\n")
    """)
    command = [sys.executable, "-I", "-S", "-c", script, str(REPOSITORY), str(installed), str(docs)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == [
        "['a.md']",
        "a.docx: needs mammoth: pip install 'rag-memtok[office]'",
        "a.pdf: needs pypdf: pip install 'rag-memtok[pdf]'",
    ]


def test_another_version_of_the_extractor_is_incomparable(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("same", "older", "broken"):
        (docs / f"{name}.pdf").write_bytes(files.pdf(name))
    found = scan([docs], DIALS)
    create(tmp_path / "store", {"model": "toy"})
    with open_store(tmp_path / "store", write=True) as store:
        for source in found.files:
            (document,) = read(source, DIALS).documents
            stored = StoredDocument(
                document.root,
                document.file,
                document.path,
                document.sha256,
                source.sha256,
                0,
                len(document.text),
                document.extractor,
            )
            older = (
                replace(stored, extractor="pdf/1 pypdf 4.0.0", sha256=source.sha256)
                if "older" in source.file
                else stored
            )
            store.replace_file(source.root, source.file, [older], [])
        (docs / "broken.pdf").write_bytes(b"no PDF any more")
        told = {
            finding.subject: (finding.kind, finding.reason)
            for finding in against(store, root_for(store, docs), scan([docs], DIALS), DIALS)
        }
    assert set(told) == {"older.pdf", "broken.pdf"} and {kind for kind, _ in told.values()} == {
        "incomparable"
    }
    assert (
        "by pdf/1 pypdf 4.0.0, here by" in told["older.pdf"][1]
        and "not a readable pdf" in told["broken.pdf"][1]
    )
