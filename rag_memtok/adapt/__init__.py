"""An adapter with which the model reads memories: dataset, training, the trip of `adapt`.

Start at run.py.
"""
