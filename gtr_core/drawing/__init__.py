"""Figures of plans and runs, charts, and the writing of images."""
