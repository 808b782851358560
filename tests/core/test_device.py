"""How much memory a process can still have, by the system and its control groups; and whether torch is too old."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from gtr_pack.gtr_core.device import OLDEST_TORCH, available_bytes, outdated_torch

MIB = 2**20
UNLIMITED_V1 = 0x7FFFFFFFFFFFF000


def machine(free: int, swap: int = 0) -> SimpleNamespace:
    """A system with so many MiB left, that tells as psutil does."""
    return SimpleNamespace(
        virtual_memory=lambda: SimpleNamespace(available=free * MIB),
        swap_memory=lambda: SimpleNamespace(free=swap * MIB),
    )


def tree(root: Path, groups: str, **files: dict[str, object]) -> Path:
    """A root whose /proc/self/cgroup says ``groups``; folders below /sys/fs/cgroup with their files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for folder, contents in files.items():
        place = root / "sys/fs/cgroup" / folder.replace("__", "/")
        place.mkdir(parents=True, exist_ok=True)
        for name, value in contents.items():
            (place / name).write_text(f"{value * MIB if isinstance(value, int) else value}\n")
    return root


def v2(limit: object, used: int, **others: object) -> dict[str, object]:
    named = {"memory." + name.replace("_", "."): value for name, value in others.items()}
    return {"memory.max": limit, "memory.current": used} | named


def v1(limit: object, used: int) -> dict[str, object]:
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used}


def test_memory_and_swap_of_a_machine_are_added(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, machine(900, 100)) == 1000 * MIB


def test_this_machine_tells_a_plausible_number() -> None:
    found = available_bytes()
    assert 2**20 < found <= psutil.virtual_memory().total + psutil.swap_memory().total


@pytest.mark.parametrize("error", [NotImplementedError, OSError, RuntimeError, KeyError("MemAvailable"), psutil.Error])
def test_a_system_that_does_not_tell_gives_none(error: type[Exception], tmp_path: Path) -> None:
    def refuse() -> None:
        raise error

    assert available_bytes(tmp_path, SimpleNamespace(virtual_memory=refuse, swap_memory=refuse)) is None


def test_the_limit_of_a_container_is_smaller_than_the_machine(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/\n", **{".": v2(512, 200)})
    assert available_bytes(root, machine(10_000)) == 312 * MIB


def test_the_machine_is_smaller_than_the_limit_of_a_container(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/\n", **{".": v2(50_000, 200)})
    assert available_bytes(root, machine(10_000)) == 10_000 * MIB


def test_the_smallest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "0::/user.slice/job/inner\n",
        **{"user.slice": v2(1000, 700), "user.slice__job": v2("max", 650), "user.slice__job__inner": v2(900, 10)},
    )
    assert available_bytes(root, machine(10_000)) == 300 * MIB


def test_files_that_are_kept_in_memory_can_be_given_up(tmp_path: Path) -> None:
    stat = f"anon {150 * MIB}\nfile {60 * MIB}\nactive_file {10 * MIB}\ninactive_file {40 * MIB}"
    root = tree(tmp_path, "0::/\n", **{".": v2(512, 200, stat=stat)})
    assert available_bytes(root, machine(10_000)) == (512 - 200 + 50) * MIB


@pytest.mark.parametrize(
    "limit, used, expected", [("max", 0, 512 + 100), (64, 0, 512 + 64), (64, 40, 512 + 24), (0, 0, 512)]
)
def test_swap_is_limited_by_the_container_too(limit: object, used: int, expected: int, tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/\n", **{".": v2(512, 0, swap_max=limit, swap_current=used)})
    assert available_bytes(root, machine(10_000, 100)) == expected * MIB


def test_a_container_beyond_its_limit_has_nothing_left(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/\n", **{".": v2(100, 120)})
    assert available_bytes(root, machine(10_000)) == 0


def test_limits_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    root = tree(tmp_path, "5:cpu:/job\n4:memory:/job\n0::/\n", **{"memory__job": v1(300, 100), "memory": v1(4000, 900)})
    assert available_bytes(root, machine(10_000)) == 200 * MIB


def test_no_limit_in_the_first_version_is_a_huge_number(tmp_path: Path) -> None:
    root = tree(tmp_path, "4:memory:/\n", memory=v1(str(UNLIMITED_V1), 900))
    assert available_bytes(root, machine(10_000)) == 10_000 * MIB


def test_memory_and_swap_have_one_limit_in_the_first_version(tmp_path: Path) -> None:
    both = {"memory.memsw.limit_in_bytes": 350, "memory.memsw.usage_in_bytes": 120}
    stat = {"memory.stat": f"inactive_file {MIB}\ntotal_active_file {3 * MIB}\ntotal_inactive_file {4 * MIB}"}
    root = tree(tmp_path, "4:memory:/\n", memory=v1(300, 100) | both | stat)
    assert available_bytes(root, machine(10_000, 1000)) == (350 - 120 + 7) * MIB


def test_a_path_from_outside_the_container_ends_at_its_own_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, "4:memory:/docker/0123abcd\n", memory=v1(300, 100))
    assert available_bytes(root, machine(10_000)) == 200 * MIB


@pytest.mark.parametrize("groups", ["", "nonsense", "4:memory", "0::/../../..", "4:memory,hugetlb:/x\n"])
def test_groups_that_cannot_be_read_limit_nothing(groups: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "deep/er/root", groups, **{".": v2("", 5)})
    assert available_bytes(root, machine(10_000)) == 10_000 * MIB


@pytest.mark.parametrize(
    "version, old",
    [
        ("2.4.1+cu121", True),
        ("2.4", True),
        ("1.13.0a0+git5", True),
        ("2.5.0", False),
        ("2.5.1+cpu", False),
        ("2.10.0", False),
        ("3.0.0.dev20270101", False),
        ("unknown", False),
    ],
)
def test_a_torch_that_is_too_old_is_said(version, old):
    line = outdated_torch(version)
    assert (line is not None) == old
    if old:
        assert f"torch {version} is too old" in line and "2.5 or newer" in line and "\n" not in line


def test_the_oldest_torch_is_the_same_everywhere(capsys, monkeypatch):
    import tomllib
    from gtr_pack.gtr_core import cli

    root = Path(__file__).resolve().parents[2]
    oldest = ".".join(map(str, OLDEST_TORCH))
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert f"torch>={oldest}" in extras["standalone"]
    assert f"PyTorch {oldest} or newer" in (root / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(cli, "outdated_torch", lambda: outdated_torch("2.4.0"))
    assert cli.main(["flops", "--model", "mar-b", "--json"]) == 0
    assert capsys.readouterr().err.startswith("warning: torch 2.4.0 is too old for GtR")
