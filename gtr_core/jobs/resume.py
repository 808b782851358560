"""Evaluating methods: many pictures per method and seed, measured in small pieces that a killed run leaves behind.

Picture k of seed s has the same label and the same noise whatever the method, the batch and the number of pictures:
methods are compared in pairs, and a longer evaluation goes on from a shorter one.
"""

from __future__ import annotations

CHUNK = 64


MOST_IMAGES = 2**31
