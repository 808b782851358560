"""The command line of the programs that measure something for docs/figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gtr_core.costs.bench import describe_machine


@dataclass(frozen=True)
class Program:
    """``python -m NAME`` has ``options``, whole numbers with their defaults, which ``measure`` takes by name. Its
    result is printed as JSON, or as ``lines`` for people."""

    name: str
    about: str
    options: dict[str, int]
    measure: Callable[..., dict]
    lines: Callable[[dict], Iterable[str]]

    def run(self) -> None:
        """Measure with the options of the command line; the result begins with the command and the machine."""
        parser = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        for name, default in self.options.items():
            parser.add_argument(f"--{name}", type=int, default=default)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        given = parser.parse_args()
        chosen = {name: getattr(given, name) for name in self.options}
        words = " ".join(f"--{name} {value}" for name, value in chosen.items())
        facts = {"command": f"python -m {self.name} {words} --json", "machine": describe_machine("cpu")}
        result = facts | self.measure(**chosen)
        print(json.dumps(result, indent=1) if given.json else "\n".join(self.lines(result)))
