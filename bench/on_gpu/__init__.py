"""What `python bench/gpu.py` runs, each section in a process that has a GPU to itself."""
