"""Whole trips over documents, model, store, memory and retrieval. Start at api.py."""
