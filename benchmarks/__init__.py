"""The claims' measurements: `python -m benchmarks.NAME --help`. measure.py is what they share."""
