"""What is published: the archive of the registry, and what ``pip install .`` makes of it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from gtr_pack.gtr_core.__main__ import NEEDED
from gtr_tests.environment import EXTRAS, extra_requirements
from gtr_tests.extras import child_environment

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FIGURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)#]+)")
MEGABYTES = 16
GENERATE = ["generate", "--steps", "1,1,1", "--diffusion", "2,2,2", "--fts", "off", "--device", "cpu", "-o", "a.png"]


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def names(requirements: list[str]) -> set[str]:
    """What is required, in any version."""
    return {re.split("[><=]", requirement)[0] for requirement in requirements}


def listed(*words: str) -> set[str]:
    """Files of the repository, by git."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", *words], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the files of this folder ({error}): the archive is made of them")
    return {name for name in done.stdout.split("\0") if (ROOT / name).is_file()}


def test_the_version_is_the_same_everywhere() -> None:
    """In the project, the changelog's first heading, the citation and the nodes of the workflows."""
    version = PROJECT["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == version and cited is not None and cited[1] == version
    workflows = [*ROOT.glob("workflows/*.json"), *ROOT.glob("subgraphs/*.json")]
    for text in (path.read_text(encoding="utf-8") for path in workflows):
        assert set(re.findall(r'"cnr_id": "gtr-mar",\s+"ver": "([^"]+)"', text)) <= {version}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `comfy node pack` puts into its archive, unpacked: the files of git that .comfyignore does not name."""
    folder = tmp_path_factory.mktemp("packed")
    for name in listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed a copy of the archive, as pip installs into an environment."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    source, target = tmp_path_factory.mktemp("source") / "gtr-mar", tmp_path_factory.mktemp("installed")
    shutil.copytree(packed, source)
    command = "install --no-index --no-deps --no-build-isolation --no-warn-script-location --target".split()
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, str(target), str(source)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def python(installed: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python in an empty folder that sees the installed library, and not the repository."""
    environment = child_environment(installed) | variables
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_archive_has_everything_that_the_pack_needs(packed: Path) -> None:
    for folder in ("nodes", "web", "locales", "workflows", "subgraphs"):
        assert files(packed / folder) == files(ROOT / folder), folder
    assert not files(packed) & {"dev.py", ".github/workflows/test.yml"} and not (packed / "tests").exists()
    assert {path.name for path in packed.iterdir()} >= {"__init__.py", "pyproject.toml", "LICENSE", "README.md"}


def test_pages_in_the_archive_have_their_figures(packed: Path) -> None:
    pages = [*packed.glob("*.md"), *packed.glob("d*/*.md"), *packed.glob("web/docs/**/*.md")]
    for page in pages:
        for target in FIGURE.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
    for target in LINK.findall((packed / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("http") or (packed / target).exists(), target


def test_data_of_evaluations_stays_out_of_the_archive(packed: Path) -> None:
    left_out = files(ROOT / "gtr_core") - files(packed / "gtr_core")
    assert left_out == {"demo/demo_judge.safetensors", "demo/demo_reference.safetensors"}
    assert not [path for path in packed.rglob("*.json") if path.relative_to(packed).parts[0] == "docs"]
    assert sum(path.stat().st_size for path in packed.rglob("*") if path.is_file()) < MEGABYTES * 2**20 * 1.1


@pytest.mark.slow
def test_the_library_and_nothing_else_is_installed(packed: Path, installed: Path) -> None:
    assert files(installed / "gtr_core") == files(packed / "gtr_core")
    others = {path.name for path in installed.iterdir()} - {"gtr_core", "bin", "__pycache__"}
    assert [re.sub(r"\d", "N", name) for name in others] == ["gtr_mar-N.N.N.dist-info"]


@pytest.mark.slow
def test_the_library_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    code = f"import sys, gtr_core.__main__ as g; sys.argv[1:] = {GENERATE}; print(g.__file__); sys.exit(g.main())"
    done = python(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_data_of_evaluations_one_line_says_so(installed: Path, tmp_path: Path) -> None:
    done = python(installed, tmp_path, "-m", "gtr_core", "eval")
    assert done.returncode == 2 and done.stderr.startswith("error: the demo's classifier and reference are not here")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.slow
def test_the_command_counts_flops(installed: Path, tmp_path: Path) -> None:
    name = "gtr.exe" if os.name == "nt" else "gtr"
    done = subprocess.run(
        [installed / "bin" / name, "flops", "--model", "mar-b", "--json"],
        cwd=tmp_path,
        env=child_environment(installed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and '"preset": "gtr-paper"' in done.stdout, done.stderr[-2000:]


def test_without_torch_one_line_says_what_to_install(installed: Path, tmp_path: Path) -> None:
    done = python(installed, tmp_path, "-S", "-m", "gtr_core", "flops", PYTHONPATH=str(installed))
    assert done.returncode == 2 and done.stdout == ""
    packages = " ".join(NEEDED)
    assert done.stderr == f"error: {', '.join(NEEDED)} not installed here: pip install {packages}\n"


def test_an_installer_has_no_reason_to_touch_torch() -> None:
    assert PROJECT["dependencies"] == []
    assert names(PROJECT["optional-dependencies"]["standalone"]) == set(NEEDED)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_tests_install_the_extras_without_their_dependencies(extra: str) -> None:
    """The extras as users get them are among the pinned packages, and torch is not."""
    lines = extra_requirements(extra).read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert names(PROJECT["optional-dependencies"][extra]) <= pinned
    assert not pinned & {"torch", "torchvision", "numpy"} and all("==" in line for line in lines if line[0] != "#")


def test_the_pack_has_one_title() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "gtr-mar" and project["tool"]["comfy"]["DisplayName"] == "GtR for ComfyUI"
