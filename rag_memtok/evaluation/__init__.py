"""What is measured: how good the answers are (`eval`), what a model's vectors hold (`paper`).

Start at evaluate.py and paper.py.
"""
