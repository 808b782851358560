"""The one exception type that the library raises for input that it cannot use."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000


class GtRError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do.

    What a file or a user put into it cannot break the line: unprintable characters are escaped, and a message of
    more than ``LONGEST`` characters is cut in the middle.
    """

    def __init__(self, message: str):
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 + 5 :]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The ``known`` names that may have been meant, the most similar first; case does not matter."""
    by_letters = {other.lower(): other for other in known}
    return [by_letters[found] for found in get_close_matches(name.lower(), by_letters, n=most)]


def first_line(error: BaseException) -> str:
    """What another library said, short enough to be quoted."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
