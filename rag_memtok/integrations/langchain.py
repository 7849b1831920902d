"""A store as a LangChain retriever (extra `langchain`).

with rag_memtok.open("./store") as store:  # or rag_memtok.Client("http://127.0.0.1:8420")
    MemtokRetriever(store=store).invoke("When does the warranty end?")
"""

from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever


class MemtokRetriever(BaseRetriever):
    """Finds chunks as `ask` does.

    A document is the kept text, or what the memory decodes to; its metadata is the citation.
    """

    store: Any  # a `MemoryStore` or a `Client`; pydantic would rather copy than keep it

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [
            Document(page_content=text, id=source.chunk, metadata=asdict(source))
            for text, source in self.store.quotations(query)
        ]
