"""The built-in demo model: its files beside this one, and its class names (as demo/data.py draws them)."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).resolve().parent
DEMO_MAR = MODELS / "demo_mar.safetensors"
DEMO_VAE = MODELS / "demo_vae.safetensors"
DEMO_JUDGE = MODELS / "demo_judge.safetensors"
DEMO_REFERENCE = MODELS / "demo_reference.safetensors"
CLASS_NAMES = (
    "animal face",
    "bird",
    "sea animal",
    "insect",
    "fruit",
    "meal",
    "dessert",
    "vehicle",
    "space",
    "ball",
    "plant",
    "character",
)
