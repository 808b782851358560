"""dev.py's setup where it touches what came from elsewhere, and where it goes on after having been cut off."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from gtr_tests import comfy_source, environment
from gtr_tests.errors import DevError
from gtr_tests.extras import why_missing


def pack(archive: Path, members: dict[str, bytes], link: tuple[str, str]) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        entry = tarfile.TarInfo(link[0])
        entry.type, entry.linkname = tarfile.SYMTYPE, link[1]
        tar.addfile(entry)


def test_only_plain_files_below_the_subtree_are_extracted(tmp_path: Path) -> None:
    archive, into = tmp_path / "a.tar.gz", tmp_path / "into"
    pack(
        archive,
        {
            "top/tree/main.py": b"1",
            "top/tree/sub/x.py": b"2",
            "top/other.py": b"3",
            "top/tree/../../evil.py": b"4",
            "/top/tree/absolute.py": b"5",
        },
        ("top/tree/link", "/etc"),
    )
    comfy_source.extract(archive, PurePosixPath("top/tree"), into)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
    assert found == {"a.tar.gz", "into/main.py", "into/sub/x.py"}


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"not the release")
    with pytest.raises(DevError, match="should have SHA-256 0000, found [0-9a-f]{64}"):
        comfy_source.check(archive, "0000")


def test_a_step_runs_once_and_again_after_a_failure_or_a_change(tmp_path: Path) -> None:
    runs: list[str] = []

    def fail() -> None:
        raise DevError("no network")

    stamp = tmp_path / "new" / "step.stamp"
    with pytest.raises(DevError):
        environment._once(stamp, "key 1", "step", fail)
    for key in ("key 1", "key 1", "key 2"):
        environment._once(stamp, key, "step", lambda key=key: runs.append(key))
    assert runs == ["key 1", "key 2"]
    with pytest.raises(DevError):
        environment._once(stamp, "key 3", "step", fail)
    assert not stamp.exists()


def test_a_wrong_comfyui_path_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(DevError, match=r"main\.py does not exist: correct it"):
        environment.prepare()


def test_an_extra_that_cannot_be_imported_is_not_taken_for_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "STATE", tmp_path / "state")
    monkeypatch.setattr(environment, "HERE", tmp_path)
    (tmp_path / "requirements-eval.txt").write_text("# nothing\n")
    monkeypatch.setitem(environment.EXTRAS, "eval", ("json", "no_such_module"))
    host = environment.Host(Path(sys.executable), tmp_path, owned=False)
    with pytest.raises(DevError, match="importing json and no_such_module failed"):
        environment.add_extra(host, "eval")
    monkeypatch.setitem(environment.EXTRAS, "eval", ("json",))
    environment.add_extra(host, "eval")
    assert [path.name for path in (tmp_path / "state").glob("*.stamp")] == ["gtr-eval.stamp"]


def test_what_is_not_installed_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTR_NO_SCALE", "no packages for this platform")
    assert why_missing("no_such_package", "scale") == "no packages for this platform"
    assert "dev.py test installs it" in why_missing("no_such_package", "eval")
    assert why_missing("pytest") == ""


def test_every_host_has_its_comfyui_and_front_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fetched once each, into folders of their own; the .venv is shared."""
    fetched: list[str] = []
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for name in ("STATE", "VENV", "COMFY"):
        monkeypatch.setattr(environment, name, tmp_path / name.lower())
    monkeypatch.setattr(environment, "_install_packages", lambda python: None)
    monkeypatch.setattr(environment, "_pip", lambda python, *words, **_: fetched.append(words[-1]))

    def fetch(source: comfy_source.Source, download: object, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "main.py").write_text(source.version)
        fetched.append(source.version)

    monkeypatch.setattr(comfy_source, "fetch", fetch)
    hosts = {which: environment.prepare(which) for which in (*environment.HOSTS, *environment.HOSTS)}
    assert sorted(fetched) == ["0.20.1", "0.30.0", environment.NEWEST_FRONT_END]
    versions = {which: (host.comfy / "main.py").read_text() for which, host in hosts.items()}
    assert versions == {"pinned": "0.30.0", "floor": "0.20.1", "newest": "0.30.0"}
    assert [which for which, host in hosts.items() if host.front_end is not None] == ["newest"]
    assert len({host.python for host in hosts.values()}) == 1


def test_another_host_is_not_taken_from_comfyui_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    for which in ("floor", "newest"):
        with pytest.raises(DevError, match="unset it, or leave --comfyui out"):
            environment.prepare(which)


def test_the_floor_is_the_one_that_the_pack_states() -> None:
    stated = (environment.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-comfyui = ">={comfy_source.FLOOR.version}"' in stated
