"""The sections of `python bench/gpu.py`, each run in its own process with a GPU of its own."""
