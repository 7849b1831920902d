"""A pytest plugin (`-p yesman`): an auditor that says yes to every memory.

The tests of the audit must fail with it.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    from rag_memtok.pipeline import reconstruction

    assert callable(reconstruction.reconstruct)  # else the yes-man would say yes where nobody asks
    reconstruction.reconstruct = lambda store, lm, template, chunk_id, drafted=True: (
        reconstruction.Reconstructed(
            chunk_id=chunk_id,
            verdict=store.record(chunk_id).verdict,
            text=store.text(chunk_id),
        )
    )
