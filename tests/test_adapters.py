"""The store as other frameworks' retriever, with the real packages.

These are the extras `langchain` and `llamaindex`.
"""

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from rag_memtok.config import Config
from rag_memtok.pipeline import api
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.progress import quiet
from rag_memtok.settings import updated

pytestmark = pytest.mark.filterwarnings("default")  # what foreign code deprecates is not our test

TEXTS = {
    "lamp.txt": "The lamp of the harbour is red.",
    "fan.txt": "The fan is very loud today.",
    "soup.txt": "Se hornea media hora.",
}


@pytest.fixture(scope="module", params=[True, False], ids=["text", "no-text"])
def store(request, tmp_path_factory, model_folder):
    """An open store that keeps its text, or that has memories alone."""
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "docs").mkdir()
    for name, text in TEXTS.items():
        (folder / "docs" / name).write_text(text)
    dials = {
        "store": str(folder / "store"),
        "model.id": str(model_folder),
        "model.threads": 1,
        "model.device": "cpu",
    }
    quick = {
        "memorize.tokens_per_vector": 4,
        "memorize.seconds_per_chunk": 0.0,
        "memorize.keep_text": request.param,
    }
    config = updated(Config(), {**dials, **quick, "retrieve.k": 2})
    api.ingest([folder / "docs"], config)
    with MemoryStore(config, trusted=False, say=quiet, on_progress=quiet) as opened:
        yield opened


def retriever_class(library, name):
    """The adapter; skipped where its extra is not installed."""
    pytest.importorskip(library, reason=f"the extra {name} is not installed")
    return importlib.import_module(f"rag_memtok.integrations.{name}").MemtokRetriever


def langchain(store):
    return retriever_class("langchain_core", "langchain")(store=store)


def llamaindex(store):
    return retriever_class("llama_index.core", "llamaindex")(store)


def check(text, score, metadata):
    assert text == TEXTS["fan.txt"]
    assert (metadata["path"], metadata["lines"], tuple(metadata["span"])) == (
        "fan.txt",
        "line 1",
        (0, len(text)),
    )
    assert (
        metadata["score"] == score > 0
        and metadata["verdict"] == "exact"
        and len(metadata["chunk"]) == 64
    )


def test_langchain_gets_documents_with_citations(store):
    retriever = langchain(store)
    found = retriever.invoke("Which fan is loud?")
    assert 1 <= len(found) <= 2
    check(found[0].page_content, found[0].metadata["score"], found[0].metadata)
    assert found[0].id == found[0].metadata["chunk"]


def test_llamaindex_gets_nodes_with_scores_and_citations(store):
    retriever = llamaindex(store)
    found = retriever.retrieve("Which fan is loud?")
    assert 1 <= len(found) <= 2 and found == sorted(found, key=lambda one: -one.score)
    check(found[0].text, found[0].score, found[0].metadata)
    assert found[0].node.node_id == found[0].metadata["chunk"]


def test_what_is_relevant_to_nothing_finds_nothing(store):
    nothing = "zyxomma quodlibet"
    assert langchain(store).invoke(nothing) == []
    assert llamaindex(store).retrieve(nothing) == []


def test_a_chain_asks_from_several_threads_at_once(store):
    from langchain_core.runnables import RunnableParallel

    retriever, question = langchain(store), "Which fan is loud?"
    alone = retriever.invoke(question)
    assert retriever.batch([question] * 4) == [alone] * 4
    both = RunnableParallel(one=retriever, other=langchain(store)).invoke(question)
    assert both == {"one": alone, "other": alone}
    assert asyncio.run(retriever.ainvoke(question)) == alone


def test_an_index_asks_from_several_threads_at_once(store):
    retriever, question = llamaindex(store), "Which fan is loud?"
    alone = retriever.retrieve(question)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(retriever.retrieve, [question] * 4)) == [alone] * 4
    assert asyncio.run(retriever.aretrieve(question)) == alone
