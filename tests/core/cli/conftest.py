"""Fixtures of the command line's tests: a verb's answer, its refusal in one line, and files that options can name."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.models.vae import KLVAE, VAESpec
from gtr_tests.evaluations import random_reference, small_classifier, write_judge, write_model
from gtr_tests.extras import child_environment
from gtr_tests.stand_ins import randomised, small_lightgen
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[3]
# Worker processes have to find the library as the program that starts them did: not by its folder, nor by PYTHONPATH.
HERE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
GTR = HERE + "from gtr_core.__main__ import main; sys.exit(main())"
# However fast the work is, nothing that a terminal's line would show is left out.
EVERY_FRAME = "from gtr_core.cli import progress; progress.SECONDS_BETWEEN_FRAMES = 0; "


@pytest.fixture
def run(capsys) -> Callable[..., dict]:
    """A verb's report."""

    def run(*arguments) -> dict:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """The one line of wrong input, which leaves nothing on standard output; the exit code is 2."""

    def refused(*arguments) -> str:
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out
        return said.err

    return refused


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """A verb in a process of its own in an empty folder, from which worker processes can be started."""
    folder, environment = tmp_path_factory.mktemp("elsewhere"), {**child_environment(), "OMP_NUM_THREADS": "1"}

    def elsewhere(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", GTR, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    return elsewhere


@pytest.fixture
def on_terminal(tmp_path) -> Callable[..., list[str]]:
    """A verb whose progress is on a pseudo terminal of unknown size: what its line shows, frame after frame, without
    the bar."""
    if os.name == "nt":
        pytest.skip("pseudo terminals")
    import pty

    def on_terminal(*arguments) -> list[str]:
        environment = {**child_environment(), "OMP_NUM_THREADS": "1"}
        outer, inner = pty.openpty()
        command = [sys.executable, "-c", HERE + EVERY_FRAME + GTR, *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=inner, text=True
        )
        os.close(inner)
        said = b""
        with contextlib.suppress(OSError):  # how a pseudo terminal ends
            while part := os.read(outer, 65536):
                said += part
        os.close(outer)
        assert process.wait() == 0, said.decode()[-2000:]
        frames = (frame.partition("|")[0] for frame in said.decode().replace("\n", "").split("\r"))
        return list(dict.fromkeys(" ".join(frame.split()) for frame in frames if frame.strip()))

    return on_terminal


@pytest.fixture(scope="session")
def model_options(tiny_mar, tmp_path_factory) -> list[str]:
    """The options that name the golden MAR and its VAE."""
    return write_model(tmp_path_factory.mktemp("model"), tiny_mar)


@pytest.fixture(scope="session")
def judge_options(tmp_path_factory) -> list[str]:
    """The options that name a classifier of the golden MAR's images, and real images that it has measured."""
    classifier = small_classifier()
    return write_judge(tmp_path_factory.mktemp("judge"), classifier, random_reference(classifier))


@pytest.fixture(scope="session")
def text_options(tmp_path_factory) -> list[str]:
    """The options that name a small LightGen and an SD3-like VAE."""
    folder, model = tmp_path_factory.mktemp("text"), small_lightgen()
    save_file(model.state_dict(), folder / "model.safetensors", spec_metadata(model.spec, "model"))
    vae = randomised(KLVAE(VAESpec(32, (1, 1, 1, 1), 1, 16, 16, quant=False)), 1)
    save_file(vae.state_dict(), folder / "vae.safetensors")
    return ["--model", str(folder / "model.safetensors"), "--vae", str(folder / "vae.safetensors")]


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory) -> Path:
    """Two encoded prompts for the small LightGen."""
    file = tmp_path_factory.mktemp("prompts") / "text.safetensors"
    save_file({"prompt_embeds": torch.randn(2, 128, 64, generator=torch.Generator().manual_seed(0))}, file)
    return file
