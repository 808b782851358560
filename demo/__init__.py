"""The demo model: synthetic data, training on a CPU, export."""
