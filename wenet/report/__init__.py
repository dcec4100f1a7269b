"""Pictures and pages of runs and cells. They need matplotlib, which `import wenet` does not load."""
