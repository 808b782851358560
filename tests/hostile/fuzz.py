"""Fuzzing of the checkpoint reader and of the spec inference: a few seconds in the test run, hours on request.

    python tests/hostile/fuzz.py --minutes 60
    python tests/hostile/fuzz.py --minutes 60 --engine atheris      (guided by coverage; needs pip install atheris)

Every input must be read or end in one GtRError, within ten seconds of computing. An input that does not is kept, and
its place printed. The last line says how many inputs were tried.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 10.0
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 65_535, 2**24, 2**24 + 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30)


def pack():
    """The repository as gtr_pack, as the tests know it."""
    if "gtr_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "gtr_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["gtr_pack"] = importlib.util.module_from_spec(spec)


class Targets:
    """What is fuzzed, and good inputs to begin with. Imports the pack when it is made, not before."""

    def __init__(self, folder: Path) -> None:
        import torch
        from gtr_pack.gtr_core import models
        from gtr_pack.gtr_core.checkpoints import checkpoint, metadata
        from gtr_pack.gtr_core.diffusion.head import HeadSpec
        from gtr_pack.gtr_core.errors import GtRError
        from gtr_pack.gtr_core.models import lightgen, mar, vae
        from gtr_pack.gtr_core.models.latents import LatentSpec

        self.refusal, self.folder = GtRError, folder
        self.checkpoint, self.metadata = checkpoint, metadata
        self.build, self.models, self.torch = models.build, models, torch
        self.specs = [
            mar.MARSpec(
                name="tiny",
                grid=(2, 2),
                dim=4,
                heads=2,
                encoder_depth=1,
                decoder_depth=1,
                classes=2,
                buffer=1,
                head=HeadSpec(2, 4, 4, 1),
                latent=LatentSpec(channels=2),
            ),
            lightgen.LightGenSpec(
                name="tiny",
                dim=4,
                heads=2,
                encoder_depth=1,
                decoder_depth=1,
                cross_depth=1,
                aligner_depth=1,
                caption_dim=4,
                head=HeadSpec(64, 4, 4, 1),
                table=2,
            ),
        ]
        self.modules = [mar.MAR(self.specs[0]), lightgen.LightGen(self.specs[1])]
        with torch.device("meta"):
            self.meta_vae = vae.KLVAE(vae.VAESpec(32, (1, 2), 1, 4, 4, encoder_attention=(1,)))

    def corpus(self, target: str) -> list[bytes]:
        return self.files() if target == "files" else self.tables()

    def target(self, name: str) -> Callable[[bytes], str]:
        """What takes one input, after torch has imported what it imports late."""
        chosen = self.try_files if name == "files" else self.try_tables
        assert "read" in {chosen(data) for data in self.corpus(name)}, "no good input is read"
        return chosen

    def files(self) -> list[bytes]:
        """Kind 0: safetensors, kind 1: zip and legacy checkpoints."""
        from safetensors.torch import save

        found = []
        for spec, module in zip(self.specs, self.modules):
            tensors = {name: t.detach().zero_() for name, t in module.state_dict().items()}
            few = dict(list(tensors.items())[:3])
            found.append(b"\0" + save(tensors, self.metadata.spec_metadata(spec, "ema")))
            prefixed = {f"module.{name}": t for name, t in few.items()}
            wrapped = {"state_dict": prefixed, "ema": {"shadow_params": list(few.values())}, "args": {"lr": {1.0}}}
            for legacy, protocol in ((False, 2), (True, 2), (False, 4), (True, 5)):
                stream = io.BytesIO()
                self.torch.save(
                    {"model": few, "args": argparse.Namespace(lr=1.0)} if protocol == 2 else wrapped,
                    stream,
                    pickle_protocol=protocol,
                    _use_new_zipfile_serialization=not legacy,
                )
                found.append(b"\1" + stream.getvalue())
        return found

    def tables(self) -> list[bytes]:
        """Names, shapes and metadata of models as JSON."""
        found = [
            {
                "shapes": {name: list(t.shape) for name, t in module.state_dict().items()},
                "metadata": self.metadata.spec_metadata(spec, "ema"),
            }
            for spec, module in zip(self.specs, self.modules)
        ]
        found.append({"shapes": {name: list(t.shape) for name, t in self.meta_vae.state_dict().items()}})
        return [json.dumps(table).encode() for table in found]

    def try_files(self, data: bytes) -> str:
        """read or refused; anything else is raised."""
        path = self.folder / ("x.safetensors" if data[:1] < b"\1" else "x.pth")
        path.write_bytes(data[1:])
        try:
            checkpoint = self.checkpoint.read_checkpoint(path)
            if self.models.recognise_autoencoder(checkpoint.tensors):
                self.checkpoint.checked_vae(checkpoint)
            else:
                self.checkpoint.checked_model(checkpoint)
        except self.refusal as error:
            return self.refused(error)
        return "read"

    def try_tables(self, data: bytes) -> str:
        try:
            table = json.loads(data)
            shapes = {str(name): tuple(shape) for name, shape in table["shapes"].items()}
            metadata = {str(key): str(value) for key, value in table.get("metadata", {}).items()}
            if not all(type(side) is int and 0 <= side < 2**63 for shape in shapes.values() for side in shape):
                return "no state dict"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return "no state dict"
        try:
            if self.models.recognise_autoencoder(shapes):
                self.models.build_autoencoder(self.metadata.read_vae_spec(shapes, metadata), device="meta")
            else:
                self.build(self.metadata.read_spec(shapes, metadata), device="meta")
        except self.refusal as error:
            return self.refused(error)
        return "read"

    def refused(self, error: Exception) -> str:
        text = str(error)
        assert text.isprintable() and 10 < len(text) < 1100, f"not one clear line: {text!r}"
        return "refused"


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The input with up to six changes of the kinds that break readers."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        at = chance.randrange(len(result) + 1) if chance.random() < 0.5 else chance.randrange(min(400, len(result)) + 1)
        kind = chance.randrange(8)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            result[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 2:
            del result[at : at + chance.choice((1, 2, 8, 100))]
        elif kind == 3:
            result[at : at + 8] = (chance.choice(NUMBERS) % 2**64).to_bytes(8, "little")
        elif kind == 4:
            part = bytes(result[at : at + chance.choice((1, 8, 64))])
            result[at:at] = part * chance.choice((1, 2, 100))
        elif kind == 5:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            result[at : at + 16] = other[start : start + 16]
        else:
            found = list(re.finditer(rb"\d+", bytes(result[:20_000])))
            if found:
                number = chance.choice(found)
                result[number.start() : number.end()] = str(chance.choice(NUMBERS)).encode()
    return bytes(result)


def guarded(target: Callable[[bytes], str], data: bytes, kept: Path) -> str:
    """Run one input; an error, and a wait without end, name the file in which the input is kept."""
    started = time.process_time()
    try:
        result = target(data)
        seconds = time.process_time() - started
        assert seconds < LONGEST_SECONDS, f"it took {seconds:.1f} seconds"
    except BaseException:
        path = kept / f"fuzz-{hashlib.sha256(data).hexdigest()[:16]}.bin"
        path.write_bytes(data)
        print(f"NOT A CLEAR LINE: the input is kept in {path}", file=sys.stderr)
        raise
    return result


def mutate(targets: Targets, name: str, seconds: float, seed: int, kept: Path) -> Counter:
    """Mutations of good inputs for so many seconds of computing."""
    chance, corpus, counts, target = random.Random(seed), targets.corpus(name), Counter(), targets.target(name)
    end = time.process_time() + seconds
    while time.process_time() < end:
        faulthandler.dump_traceback_later(20 * LONGEST_SECONDS, exit=True)
        counts[guarded(target, mutated(chance.choice(corpus), corpus, chance), kept)] += 1
    faulthandler.cancel_dump_traceback_later()
    return counts


def atheris_fuzz(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Guided by the coverage of gtr_core; libFuzzer ends the process and prints the number of runs."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris, or leave --engine out")
    with atheris.instrument_imports(include=["gtr_pack.gtr_core"]):
        targets = Targets(folder)
    inputs = folder / "corpus"
    inputs.mkdir()
    for index, data in enumerate(targets.corpus(name)):
        (inputs / str(index)).write_bytes(data)
    target = targets.target(name)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={int(seconds)}",
            f"-seed={seed}",
            f"-timeout={int(LONGEST_SECONDS)}",
            "-rss_limit_mb=4096",
            "-max_len=65536",
            "-print_final_stats=1",
            "-verbosity=0",
            f"-artifact_prefix={os.getcwd()}/",
            str(inputs),
        ],
        lambda data: target(data) and None,
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of computing in all, shared by the targets")
    parser.add_argument("--target", choices=("files", "specs", "both"), default="both")
    parser.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = ("files", "specs") if options.target == "both" else (options.target,)
    warnings.simplefilter("ignore")
    pack()
    with tempfile.TemporaryDirectory() as folder:
        if options.engine == "atheris":
            if len(names) > 1:
                parser.error("atheris fuzzes one thing per process: give --target files or --target specs")
            atheris_fuzz(names[0], options.minutes * 60, options.seed, Path(folder))
        targets, counts = Targets(Path(folder)), Counter()
        for name in names:
            found = mutate(targets, name, options.minutes * 60 / len(names), options.seed, Path.cwd())
            print(f"{name}: {sum(found.values())} inputs, {dict(found)}", flush=True)
            counts += found
    print(f"TRIED {sum(counts.values())} inputs: each was read or ended in one clear line")


if __name__ == "__main__":
    main()
