"""The one loop that runs every plan, with its evaluators, caches, accelerations and estimates of memory."""
