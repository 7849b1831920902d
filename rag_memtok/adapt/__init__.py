"""An adapter with which the model reads memories: lessons, training, the trip of `adapt`. Start at trip.py."""
