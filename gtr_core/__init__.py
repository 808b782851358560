"""Masked autoregressive image models and GtR sampling on plain PyTorch. Nothing here knows a host."""
