"""A store as a LangChain retriever (extra `langchain`).

with pipeline.session(config) as session:
    MemtokRetriever(session=session).invoke("When does the warranty end?")
"""

from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from rag_memtok.pipeline.answer import quotations


class MemtokRetriever(BaseRetriever):
    """Finds chunks as `ask` does.

    A document is the kept text, or what the memory decodes to; its metadata is the citation.
    """

    session: Any  # an open `answer.Session`; pydantic would rather copy than keep it

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [
            Document(page_content=text, id=source.chunk, metadata=asdict(source))
            for text, source in quotations(self.session, query)
        ]
