"""What is shipped: the wheel holds its data and nothing secret, and the locked requirements fit the project."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PACKAGES = ("attestation", "policies", "enclave", "broker", "simulator")
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
IN_ALL = ["broker", "corim", "enclave", "simulator"]
EXTRAS = {"base": [], "all": IN_ALL, "tpm": ["tpm"], "dev": [*IN_ALL, "dev"]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0].lower().replace("_", "-").replace(".", "-")


def pinned(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text("utf-8"), re.MULTILINE))


def test_the_wheel_holds_the_packages_and_their_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"cloister.py", "broker/wire/envelope.proto", "attestation/roots/intel-sgx-root-ca.pem"} <= names
    starters = {f"policies/starters/{kind}/bundle.toml" for kind in ("dev", "tenant", "relying")}
    assert starters <= names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {*PACKAGES, "cloister.py"}


def test_the_wheel_ships_no_private_key_and_one_root(wheel: zipfile.ZipFile) -> None:
    """The simulator's root is made anew for every machine; Intel's is the only certificate here."""
    held = {name: wheel.read(name) for name in wheel.namelist()}
    key = re.compile(rb"-----BEGIN (EC |RSA |ENCRYPTED )?PRIVATE KEY-----\s+[A-Za-z0-9+/]{32}")
    assert [name for name, content in held.items() if key.search(content)] == []
    certificate = re.compile(rb"-----BEGIN CERTIFICATE-----\s+[A-Za-z0-9+/]{32}")
    assert [name for name, content in held.items() if certificate.search(content)] == [
        "attestation/roots/intel-sgx-root-ca.pem"
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_has_a_hash_for_everything_and_no_address(lock: Path) -> None:
    text = lock.read_text("utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_covers_what_the_project_asks_for(lock: Path) -> None:
    wanted = list(PROJECT["dependencies"])
    for extra in EXTRAS[lock.stem]:
        wanted += PROJECT["optional-dependencies"][extra]
    missing = {name_of(requirement) for requirement in wanted} - {"cloister"} - set(pinned(lock))
    assert missing == set(), "run: make lock"


def test_the_locks_agree_with_each_other() -> None:
    development = pinned(ROOT / "requirements" / "dev.txt")
    for lock in LOCKS:
        assert {n: v for n, v in pinned(lock).items() if n in development and development[n] != v} == {}


def test_every_entry_point_leads_to_something() -> None:
    groups = [*PROJECT["entry-points"].values(), PROJECT["scripts"]]
    for value in (value for group in groups for value in group.values()):
        module, _, attribute = value.partition(":")
        loaded = import_module(module)
        assert not attribute or hasattr(loaded, attribute), value
