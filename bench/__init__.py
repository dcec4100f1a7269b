"""Measurements of speed and memory; see docs/performance.md for how to run them."""
