"""Whose file is it, and is it still what was read?"""

import json
import os
import shutil
from pathlib import Path

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from older import to_format_1

from rag_memtok.datatypes import StoredDocument
from rag_memtok.documents.names import distinct_names
from rag_memtok.pipeline import api
from rag_memtok.pipeline.citation import LARGEST, file_state

FEES = {
    "2024/fees.md": "The club fee is 40 euros.\n",
    "2025/fees.md": "The club fee is 55 euros.\n",
}
QUESTION = "What is the club fee?"


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    """Two folders with a file of one name each, and their store."""
    folder = tmp_path_factory.mktemp("fees")
    small.written(folder / "docs", {**FEES, "2025/other.md": "The lamp is red.\n"})
    config = small.dials(folder / "store", model_folder)
    api.ingest([folder / "docs" / "2024", folder / "docs" / "2025"], config)
    return folder, config


@pytest.fixture
def fees(made, tmp_path):
    """A copy of the store, and the folder with the files, which may be changed."""
    folder, config = made
    shutil.copytree(folder / "store", tmp_path / "store")
    yield folder / "docs", small.dials(tmp_path / "store", config.model.id)
    small.written(folder / "docs", {**FEES, "2025/other.md": "The lamp is red.\n"})


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ([("/a", "x")], ["x"]),
        ([("/a", "x"), ("/b", "x"), ("/b", "y")], ["a/x", "b/x", "y"]),
        ([("/n/a", "x"), ("/m/a", "x")], ["n/a/x", "m/a/x"]),
        ([("/n/a", "x"), ("/m/a", "x"), ("/b", "x")], ["n/a/x", "m/a/x", "b/x"]),
        ([("/a", "x"), ("/b", "x"), ("/c", "a/x")], ["/a/x", "b/x", "a/x"]),
        ([("/", "x"), ("/a", "x")], ["/x", "a/x"]),
    ],
)
def test_a_file_is_called_by_as_little_as_tells_it_apart(files, names):
    assert [distinct_names(files)[one] for one in files] == names


parts = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


@given(st.sets(st.tuples(parts.map(lambda root: f"/{root}"), parts), max_size=8))
def test_no_two_files_have_one_name(files):
    names = distinct_names(sorted(files))
    assert {*names} == files
    whole = {f"{root}/{path}" for root, path in files}
    if len(whole) == len(files):  # else they are one file, ingested from two folders
        assert len({*names.values()}) == len(files)
    assert all(f"{root}/{path}".endswith(name) for (root, path), name in names.items())


def test_files_of_one_name_are_told_apart_everywhere(fees, command_line):
    folder, config = fees
    where = ("--store", config.store)
    found = api.ask(QUESTION, config)
    assert {one.name for one in found.sources[:2]} == {*FEES}
    assert {one.root for one in found.sources[:2]} == {
        str(folder / one) for one in ("2024", "2025")
    }
    assert {one.path for one in found.sources[:2]} == {"fees.md"}
    _, out, _ = command_line("search", QUESTION, *where)
    assert "2024/fees.md, " in out and "2025/fees.md, " in out
    _, out, _ = command_line("list", *where)
    listed = [line.split()[0] for line in out.splitlines()[1:]]
    assert listed == ["2024/fees.md", "2025/fees.md", "other.md"]
    _, out, _ = command_line("list", *where, "--json")
    assert [one["name"] for one in json.loads(out)["documents"]] == listed


def test_what_is_listed_can_be_removed_by_that_name(fees, command_line):
    folder, config = fees
    where = ("--store", config.store)
    code, out, _ = command_line("rm", "2024/fees.md", *where)
    assert code == 0 and out == f"forgot {folder}/2024/fees.md\n"
    assert [one.name for one in api.documents(config)] == ["fees.md", "other.md"]
    assert command_line("rm", "fees.md", *where)[0] == 0
    assert command_line("rm", "fees.md", *where)[0] == 2


def states(config):
    found = api.ask(QUESTION, config)
    return {one.name: one.file for one in found.sources if one.path == "fees.md"}


def test_a_source_that_is_gone_or_changed_is_marked(fees, command_line):
    folder, config = fees
    assert states(config) == dict.fromkeys(FEES, "")
    (folder / "2024" / "fees.md").unlink()
    (folder / "2025" / "fees.md").write_text("The club fee is 60 euros.\n")
    assert states(config) == {"2024/fees.md": "gone", "2025/fees.md": "changed"}
    _, out, _ = command_line("ask", QUESTION, "--store", config.store)
    assert "memory exact; FILE GONE)" in out and "memory exact; FILE CHANGED since)" in out
    small.written(folder, FEES)
    assert states(config) == dict.fromkeys(FEES, "")


def test_a_copy_or_a_checkout_is_no_edit(fees):
    folder, config = fees
    for file in folder.rglob("fees.md"):
        os.utime(file, (0, 0))
    assert states(config) == dict.fromkeys(FEES, "")


def test_a_folder_that_was_moved_as_a_whole_is_gone(fees, tmp_path):
    folder, config = fees
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    assert states(config) == dict.fromkeys(FEES, "gone")
    folder.mkdir()  # the roots were in it
    assert states(config) == dict.fromkeys(FEES, "gone")
    folder.rmdir()
    shutil.move(moved, folder)


def test_of_a_file_of_the_same_size_and_time_the_stat_decides(fees):
    folder, config = fees
    file = folder / "2025" / "fees.md"
    (then,) = {one.document.modified for one in api.documents(config) if one.name == "2025/fees.md"}
    file.write_text("The club fee is 66 euros.\n")
    os.utime(file, ns=(then, then))
    assert states(config) == dict.fromkeys(FEES, "")  # its bytes were not looked at
    os.utime(file, ns=(then, then + 1_000_000))
    assert states(config) == {"2024/fees.md": "", "2025/fees.md": "changed"}


def test_another_size_is_a_change_of_the_largest_file_too(fees):
    folder, config = fees
    os.truncate(folder / "2024" / "fees.md", LARGEST + 1)
    assert states(config) == {"2024/fees.md": "changed", "2025/fees.md": ""}


def test_where_size_and_time_are_not_known_the_bytes_decide(fees):
    folder, config = fees
    to_format_1(Path(config.store))
    file = folder / "2025" / "fees.md"
    before = file.stat()
    file.write_text("The club fee is 66 euros.\n")
    os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns))
    os.utime(folder / "2024" / "fees.md", (0, 0))
    assert states(config) == {"2024/fees.md": "", "2025/fees.md": "changed"}


def test_of_a_store_from_elsewhere_nothing_is_said(fees, tmp_path, monkeypatch):
    folder, config = fees
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody-else"))
    found = api.search(QUESTION, config)
    assert {one.source.file for one in found} == {""}
    shutil.move(moved, folder)


@pytest.mark.parametrize(
    ("root", "state"),
    [
        ("/none-of-that-name", ""),  # an export that says nothing of its machine
        ("/usr/none-of-that-name", "gone"),
        ("/none-of-that-name/docs", ""),
        ("/usr/none-of-that-name/docs", ""),
        ("/usr/bin/none-of-that-name/docs", "gone"),
    ],
)
def test_a_root_is_gone_where_what_held_it_is_there(root, state):
    document = StoredDocument(root, "a.md", "a.md", "", "", 1, 1, "text/1")
    assert file_state(document, is_own=True) == state
    assert file_state(document, is_own=False) == ""
