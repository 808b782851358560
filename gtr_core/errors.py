"""The one exception type that the library raises for input that it cannot use."""


class GtRError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do."""


def first_line(error: BaseException) -> str:
    """What another library said, short enough to be quoted."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
