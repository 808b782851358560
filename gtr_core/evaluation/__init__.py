"""Metrics of images, FID, and the search for schedules."""
