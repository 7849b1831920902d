"""A store of every released format opens, verifies, and gives its documents back, for ever.

Made by tests/golden/make_store.py.
"""

import shutil
from pathlib import Path

import pytest

from rag_memtok.config import Config
from rag_memtok.pipeline import api
from rag_memtok.settings import updated
from rag_memtok.store.formats import FORMAT

STORES = Path(__file__).parent / "golden" / "stores"


@pytest.fixture(params=sorted(folder.name for folder in STORES.iterdir()))
def golden(request, tmp_path):
    """A copy, so that a migration or a lock cannot change the original."""
    return Path(shutil.copytree(STORES / request.param, tmp_path / request.param))


def dials(golden):
    return updated(
        Config(),
        {"store": str(golden / "store"), "model.id": str(golden / "model"), "model.threads": 1},
    )


def test_the_present_format_has_a_golden_store():
    assert (STORES / f"format-{FORMAT}").is_dir()


def test_a_golden_store_verifies(golden):
    audit = api.verify(dials(golden))
    assert (audit.exit_code, audit.findings, audit.checked) == (0, (), audit.chunks)
    assert audit.documents_proven == audit.documents == 3


def test_a_golden_store_gives_its_documents_back(golden, tmp_path):
    restored = api.restore(tmp_path / "restored", dials(golden))
    assert len(restored.written) == 3
    for path in restored.written:
        assert path.read_bytes() == (golden / "docs" / path.name).read_bytes()


def test_a_golden_store_finds_its_words(golden):
    found = api.ask(
        "Who wrote to the pilots?", updated(dials(golden), {"ask.max_new_tokens": 2}), trusted=True
    )
    assert found.sources[0].path == "harbour.md"
