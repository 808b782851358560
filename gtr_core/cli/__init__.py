"""The command line: ``python -m gtr_core VERB``. A verb is one file that owns its options and its behaviour."""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from collections.abc import Sequence

from ..device import is_out_of_memory, outdated_torch
from ..errors import GtRError, first_line
from . import bench, checkpoint, evaluate, generate, generate_many, plan, search
from .options import HelpFormatter, Options

PROGRAM = "python -m gtr_core"
VERBS = (
    checkpoint.INFO,
    checkpoint.CONVERT,
    plan.SCHEDULE,
    plan.FLOPS,
    generate.GENERATE,
    generate_many.GENERATE_MANY,
    bench.BENCH,
    evaluate.EVAL,
    search.SEARCH,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it worked, 2 with one line on stderr when the input was wrong or memory ran out."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _print_anything()
    options = parsed(arguments)
    options.command = shlex.join(["python", "-m", "gtr_core", *arguments])
    outdated = outdated_torch()
    if outdated:
        print(f"warning: {outdated}", file=sys.stderr)
    try:
        options.run(options)
    except GtRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cancelled{': the same command goes on' if options.resumable else ''}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory ({first_line(error)}): make the batch or the size smaller", file=sys.stderr)
        return 2
    return 0


def parsed(arguments: Sequence[str]) -> Options:
    """The options of a command line. Wrong ones end the program with its usage."""
    return _parser().parse_args(arguments)


def _print_anything() -> None:
    """A terminal whose code page lacks a letter gets its escape: the work is done by then, and must not be lost."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Masked autoregressive image models with GtR.",
        epilog=f"'{PROGRAM} VERB --help' shows the options of a verb, their defaults and examples.",
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        examples = "\n".join(f"  {PROGRAM} {example}" for example in verb.examples)
        sub = subparsers.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.summary,
            epilog=f"examples:\n{examples}",
            formatter_class=HelpFormatter,
        )
        sub.set_defaults(run=verb.run, resumable=verb.resumable)
        sub.add_argument("--json", action="store_true", help="report as one line of JSON")
        verb.add_options(sub)
    return parser
