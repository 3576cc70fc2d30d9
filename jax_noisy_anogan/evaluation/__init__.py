"""The held-out images of a run: measured, pictured and reported."""
