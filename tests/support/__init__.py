"""Helpers shared by dev.py and the tests.

dev.py imports this package as `tests.support`, the tests as `gtr_tests` (see tests/conftest.py).
`errors`, `environment`, `comfy_source`, `rest`, `server`, `chromium` need the standard library only.
"""
