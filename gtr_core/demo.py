"""Where the built-in demo model lies."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"
DEMO_MAR = MODELS / "demo_mar.safetensors"
DEMO_VAE = MODELS / "demo_vae.safetensors"
