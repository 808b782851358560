"""What is decoded when, and how: schedules, presets, orders, partitions, FTS, and the plan of a run."""
