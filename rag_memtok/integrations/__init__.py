"""The store as others' retriever. Imported by nothing here."""
