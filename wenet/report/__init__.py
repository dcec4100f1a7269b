"""Runs and cells as pictures and pages. Needs matplotlib, which `import wenet` leaves alone."""
