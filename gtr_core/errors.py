"""The one exception type that the library raises for input that it cannot use."""


class GtRError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do."""
