"""A pytest plugin (`-p yesman`): an auditor that says yes to every memory.

The tests of the audit must fail with it.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    from rag_memtok.pipeline import audit

    audit.recite = lambda store, lm, template, chunk_id: audit.Recited(
        chunk_id, store.record(chunk_id).verdict, store.text(chunk_id)
    )
