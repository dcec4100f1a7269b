"""Searching: strategies, and what measures their results."""
