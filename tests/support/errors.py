"""The one exception that these helpers raise on purpose."""


class DevError(RuntimeError):
    """Something a person has to act on; the message is one line: what was expected, what was found, what to do."""
