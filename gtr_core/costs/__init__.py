"""FLOPs, the report of a run, and benchmarks."""
