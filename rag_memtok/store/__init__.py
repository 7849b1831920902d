"""The store's folder: one SQLite file that is whole or not at all. Start at store.py."""
