"""Retrieval-augmented generation over memory tokens.

Start at `pipeline.py`; the file listing is the pipeline.
"""

__version__ = "0.1.0"
