"""Text -> key -> hits. Start at search.py."""
