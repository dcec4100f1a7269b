"""Training: the one loop, the paper's evaluation of one cell, and standalone training of many cells at once."""
