"""Export cells and trained models for use without this package."""
