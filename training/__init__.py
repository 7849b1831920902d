"""How the embedded model and retriever were made, end to end.

Start at README.md; nothing here is imported by `rag_memtok`.
"""
