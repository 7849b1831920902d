"""Rows of the matrix (README.md here) that no other test covers, and the matrix itself.

The planted faults of the audit's audit are here, too.
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import fuzz
import kills
import machine
import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from world import World

from rag_memtok import errors
from rag_memtok.config import Documents
from rag_memtok.datatypes import Memory
from rag_memtok.documents.loaders import LOADERS
from rag_memtok.documents.scan import scan
from rag_memtok.errors import RagMemtokError
from rag_memtok.memory.codec import CODECS, codec_named
from rag_memtok.memory.reconstruct import decode, judge
from rag_memtok.model.prompts import template_named
from rag_memtok.pipeline import api
from rag_memtok.store.schema import pack_pins, unpack_pins
from rag_memtok.store.store import open_store

HERE = Path(__file__).parent
MATRIX = (HERE / "README.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in MATRIX.partition("\n## The matrix\n")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| input or fault |")
]


@pytest.fixture(scope="module")
def world():
    # not pytest's own, into which another user may not look
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield World(Path(folder))


# --- the matrix


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_row_names_tests_that_there_are(row):
    names = re.findall(r"`(test_\w+)\.py(?:::(\w+))?`", row[-1])
    assert names
    for file, function in names:
        (path,) = HERE.parent.rglob(f"{file}.py")
        assert not function or f"def {function}(" in path.read_text(encoding="utf-8"), (
            f"{file}::{function}"
        )


def test_every_exit_code_has_a_row():
    told = {int(code) for row in ROWS for code in re.findall(r"\d+", row[2])}
    assert {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, RagMemtokError)
    } - {1} <= told
    assert {0, 3, 6, 130, 141, 143} <= told


# --- inputs


@settings(max_examples=30)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24),
    seed=st.integers(0, 9),
    codec=st.sampled_from(list(CODECS)),
)
def test_any_unicode_comes_back_from_the_bytes_of_a_memory(toy_lm, text, seed, codec):
    """Chunk -> memory bytes -> decode with pins -> text, with vectors that nobody has trained.

    The pins alone must make up for them.
    """
    tokens = toy_lm.encode(text)
    template, vectors = (
        template_named("bare", toy_lm),
        np.random.default_rng(seed).standard_normal((2, toy_lm.width), dtype=np.float32),
    )
    packed = codec_named(codec).pack(vectors)
    memory, verdict = judge(
        toy_lm, template, Memory(codec_named(codec).unpack(packed, vectors.shape)), tokens, 0.05
    )
    read_back = Memory(
        codec_named(codec).unpack(packed, vectors.shape), unpack_pins(pack_pins(memory.pins))
    )
    decoded = decode(toy_lm, template, read_back, len(tokens) + 1)
    assert decoded.ended and toy_lm.decode(decoded.tokens) == text and verdict.proven


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_files_without_permission_are_skipped_and_told(world):
    world.write(
        {"open.txt": "The lamp.\n", "closed.txt": "The fan.\n", "shut/in.txt": "A letter.\n"}
    )
    (world.documents / "closed.txt").chmod(0)
    (world.documents / "shut").chmod(0)

    def look():
        os.setgid(65534), os.setuid(65534)
        found = {item.path: item.reason for item in scan([world.documents], Documents()).skipped}
        assert found == {"closed.txt": "no permission", "shut/": "no permission"}

    child = world.start(look)
    assert child.wait() == 0, child.output


def test_a_renamed_file_keeps_its_memory_and_prune_keeps_to_the_roots_given(world, tmp_path):
    one, two = (
        small.written(tmp_path / "one", {"a.txt": "The lamp."}),
        small.written(tmp_path / "two", {"b.txt": "The fan."}),
    )
    config = world.config(tmp_path / "store")
    api.ingest([one, two], config, load=world.load)
    (one / "a.txt").rename(one / "c.txt")
    (two / "b.txt").rename(two / "gone.png")
    done = api.ingest([one], config, prune=True, load=world.load)
    assert (done.removed, done.chunks, done.reused) == (1, 0, 1)
    with open_store(tmp_path / "store", write=False) as store:
        assert [document.file for document in store.documents()] == ["c.txt", "b.txt"]


def test_an_answer_cannot_steer_a_terminal(world):
    ours, theirs = pty.openpty()
    code = "from rag_memtok.cli import console; console.put('\\x1b[2J\\x9b31m red \\u202e')"
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True)
    shown = os.read(ours, 4096).decode()
    os.close(ours), os.close(theirs)
    assert shown.strip() == r"\x1b[2J\x9b31m red \u202e"


@pytest.mark.slow
def test_an_interrupt_once_or_twice_keeps_what_is_done(world):
    assert [
        trial for trial in kills.interrupts(world.scenes["ingest"], 3, seed=1) if trial.wrong
    ] == []


@pytest.mark.slow
def test_edits_deletions_and_kills_against_a_dictionary(world):
    assert [trial.wrong for trial in machine.against_a_dictionary(world, 3, 6)] == [()]
    assert machine.AgainstADictionary.steps >= 3


def test_every_way_to_read_a_file_is_fed_any_bytes():
    fed = {LOADERS[f".{name.rpartition('.')[2]}"].extractor for name, _ in fuzz.SEEDS.values()}
    assert fed == {loader.extractor for loader in LOADERS.values()}


@pytest.mark.parametrize("what", [fuzz.loaders, fuzz.settings_file])
def test_any_bytes_are_read_or_refused(world, what):
    assert [trial.wrong for trial in what(world, 1.0) if trial.wrong] == []


# --- the audit's audit: test_audit.py plants the faults; here the auditor himself is corrupt


@pytest.mark.slow
def test_a_verify_that_always_says_yes_fails_the_suite():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "yesman",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        HERE.parent / "test_audit.py",
    ]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=HERE.parent.parent,
        env={**os.environ, "PYTHONPATH": paths},
    )
    failed = re.findall(r"FAILED .*::(test_\w+)", done.stdout)
    assert (
        sum("mismatch" in name for name in failed) >= 5
        and "test_a_whole_store_is_proven_from_vectors_and_pins_alone" not in failed
    )
