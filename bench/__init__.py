"""Measurements of speed and memory; see docs/measurements/how.md for how to run them."""
