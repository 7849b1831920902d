"""A store as a LlamaIndex retriever (extra `llamaindex`).

with rag_memtok.open("./store") as store:  # or rag_memtok.Client("http://127.0.0.1:8420")
    MemtokRetriever(store).retrieve("When does the warranty end?")
"""

from dataclasses import asdict

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.serve.client import Client


class MemtokRetriever(BaseRetriever):
    """Finds chunks as `ask` does.

    A node is the kept text, or what the memory decodes to; its metadata is the citation.
    """

    def __init__(self, store: MemoryStore | Client) -> None:
        super().__init__()
        self.store = store

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(text=text, id_=source.chunk, metadata=asdict(source)),
                score=source.score,
            )
            for text, source in self.store.quotations(query_bundle.query_str)
        ]
