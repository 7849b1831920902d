"""The frozen language model: found, loaded, prompted, run. Start at lm.py."""
