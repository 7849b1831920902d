"""A pytest plugin (`-p yesman`): an auditor that says yes to every memory.

The tests of the audit must fail with it.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    from rag_memtok.pipeline import recite

    assert callable(recite.recite)  # else the yes-man would say yes where nobody asks
    recite.recite = lambda store, lm, template, chunk_id, drafted=True: recite.Recited(
        chunk_id, store.record(chunk_id).verdict, store.text(chunk_id)
    )
