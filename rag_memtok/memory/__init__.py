"""The science: chunks -> vectors, and back. Start at optimize.py and reconstruct.py."""
