"""Measured launch: the digest says exactly what will run, and the running copy gets a socket and nothing more."""

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.eventlog import EventLog
from attestation.quote import Quote
from enclave import cli, launch, packages, supervise
from enclave.domain import DomainServer, RemoteDomain
from enclave.errors import Code, EnclaveError
from simulator.domain import SimulatedTd
from simulator.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
AGENT = b"print('hello')\n"


def code_of(action: object, *arguments: object) -> str:
    try:
        action(*arguments)  # type: ignore[operator]  # a callable that the test names
    except EnclaveError as error:
        return str(error.code)
    return "ok"


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    (folder / "lib").mkdir(parents=True)
    (folder / "__main__.py").write_bytes(AGENT)
    (folder / "lib" / "tool.py").write_bytes(b"x = 1\n")
    return folder


@pytest.fixture
def domain() -> SimulatedTd:
    return Machine.create(seed="launch").launch("launch")


def digest(path: Path) -> bytes:
    with launch.stage(path, with_packages=False) as staged:
        return staged.digest


def test_the_same_files_give_the_same_digest_wherever_they_lie(agent: Path, tmp_path: Path) -> None:
    first = digest(agent)
    twin = tmp_path / "elsewhere"
    twin.mkdir()
    (twin / "lib").mkdir()
    (twin / "lib" / "tool.py").write_bytes(b"x = 1\n")  # written in another order, at another time
    (twin / "__main__.py").write_bytes(AGENT)
    os.utime(twin / "__main__.py", (0, 0))
    assert digest(twin) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda top: (top / "__main__.py").write_bytes(AGENT.replace(b"hello", b"hellp")),
        lambda top: (top / "lib" / "tool.py").rename(top / "lib" / "tools.py"),
        lambda top: (top / "lib" / "more.py").write_bytes(b""),
        lambda top: (top / "lib" / "tool.py").unlink(),
        lambda top: (top / "lib" / "tool.py").chmod(0o755),
        lambda top: ((top / "lib" / "tool.py").rename(top / "tool.py"), (top / "lib").rmdir()),
    ],
    ids=["one byte", "renamed", "added", "removed", "made executable", "moved"],
)
def test_any_change_gives_another_digest(agent: Path, change: object) -> None:
    before = digest(agent)
    change(agent)  # type: ignore[operator]  # a callable from the list above
    assert digest(agent) != before


def test_caches_and_foreign_permission_bits_do_not_count(agent: Path) -> None:
    before = digest(agent)
    (agent / "__pycache__").mkdir()
    (agent / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"cache")
    (agent / "__main__.py").chmod(0o664)
    assert digest(agent) == before


def test_the_digest_is_the_documented_hash_of_the_copy(agent: Path) -> None:
    with launch.stage(agent, with_packages=False) as staged:
        expected = hashlib.sha384(b"cloister/code/v1\0")
        for name in sorted(b"boot.py agent/__main__.py agent/lib/tool.py".split()):
            content = (staged.top / os.fsdecode(name)).read_bytes()
            expected.update(struct.pack(">I", len(name)) + name + struct.pack(">IQ", 0o444, len(content)) + content)
        assert staged.digest == expected.digest()
        assert staged.files == 3


def test_the_copy_is_private_and_goes_away(agent: Path) -> None:
    with launch.stage(agent, with_packages=False) as staged:
        assert stat.S_IMODE(staged.top.stat().st_mode) == 0o700
        assert not (staged.top / "agent" / "__main__.py").stat().st_mode & 0o222
    assert not staged.top.exists()


def test_what_cannot_be_measured_is_refused(agent: Path, tmp_path: Path) -> None:
    assert code_of(digest, tmp_path / "missing.py") == Code.LAUNCH_EMPTY
    assert code_of(digest, agent / "lib") == Code.LAUNCH_EMPTY
    (agent / "link").symlink_to("/etc/passwd")
    assert code_of(digest, agent) == Code.LAUNCH_UNSAFE_FILE
    (agent / "link").unlink()
    os.mkfifo(agent / "pipe")
    assert code_of(digest, agent) == Code.LAUNCH_UNSAFE_FILE


def test_a_refused_copy_leaves_nothing_behind(agent: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Path] = []
    place = launch._private_folder

    def remember(need: int) -> tuple[Path, bool]:
        made.append(place(need)[0])
        return made[-1], False

    monkeypatch.setattr(launch, "_private_folder", remember)
    (agent / "boot.py").write_bytes(b"")  # lands in agent/, not in the place of the copy's own first file
    digest(agent)
    monkeypatch.setattr(launch, "_BOOT_TEXT", None)
    with pytest.raises(AttributeError):
        digest(agent)
    assert [path.exists() for path in made] == [False, False]


def test_too_much_is_refused_before_it_is_copied(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MAX_BYTES", 10)
    assert code_of(digest, agent) == Code.LAUNCH_TOO_LARGE


def test_an_agent_says_what_it_needs(agent: Path) -> None:
    entry = agent / "__main__.py"
    assert packages.declared(entry) == ()
    entry.write_text('# /// script\n# dependencies = ["rfc8785", "cloister[enclave]"]\n# ///\nprint()\n')
    assert packages.declared(entry) == ("rfc8785",)
    entry.write_text("# /// script\n# dependencies = 3\n# ///\n")
    assert code_of(packages.declared, entry) == Code.LAUNCH_PACKAGE
    assert code_of(lambda: list(packages.package_files(("no-such-package-here",)))) == Code.LAUNCH_PACKAGE


def test_packages_come_with_all_that_they_require() -> None:
    names = {item.target.parts[1] for item in packages.package_files(("httpx2",))}
    assert {"httpx2", "httpcore2", "h11", "anyio", "idna"} <= names
    assert not any("RECORD" in str(item.target) for item in packages.package_files(("httpx2",)))


def test_the_framework_travels_without_broker_and_simulator() -> None:
    tops = {item.target.parts[1] for item in packages.framework_files()}
    assert tops == {"attestation", "policies", "enclave", "broker"}
    assert all(
        item.target.parts[2] in ("__init__.py", "wire")
        for item in packages.framework_files()
        if item.target.parts[1] == "broker"
    )


def test_a_launch_stands_in_rtmr3_and_in_the_log(agent: Path, domain: SimulatedTd) -> None:
    before = domain.rtmrs
    code = digest(agent)
    launch.extend(domain, code, "agent")
    log = EventLog.parse(domain.event_log())
    assert domain.rtmrs[:3] == before[:3]
    assert [(one.digest, one.name) for one in log.launches()] == [(code.hex(), "agent")]
    log.check(Quote.parse(domain.quote(bytes(range(64)))).td)


@pytest.fixture
def remote(domain: SimulatedTd) -> Iterator[RemoteDomain]:
    server = DomainServer(domain)
    theirs = server.theirs.dup()
    server.start()
    yield RemoteDomain(theirs)
    theirs.close()
    server.close()


def test_the_running_copy_gets_quotes_and_the_log_but_cannot_extend(remote: RemoteDomain, domain: SimulatedTd) -> None:
    wanted = os.urandom(64)
    assert Quote.parse(remote.quote(wanted)).report_data == wanted
    assert remote.event_log() == domain.event_log()
    assert (remote.name, remote.simulated) == ("cloister-sim", True)
    before = domain.rtmrs
    with pytest.raises(EnclaveError) as refused:
        remote.extend(3, bytes(48), event_type=6, data=b"")
    assert refused.value.code is Code.LAUNCH_DOMAIN_FORBIDDEN
    with pytest.raises(EnclaveError) as refused:
        remote._ask(b"X", b"\3" + bytes(48))
    assert refused.value.code is Code.LAUNCH_DOMAIN_FORBIDDEN
    assert domain.rtmrs == before


def test_a_domain_that_is_gone_says_so(domain: SimulatedTd) -> None:
    server = DomainServer(domain)
    theirs = server.theirs.dup()
    server.start()
    remote = RemoteDomain(theirs)
    server.close()
    with pytest.raises(EnclaveError) as refused:
        remote.quote(bytes(64))
    assert refused.value.code is Code.LAUNCH_DOMAIN_GONE
    theirs.close()


PROBE = """
import json, os, sys
from enclave.domain import RemoteDomain
domain = RemoteDomain.inherited()
print(json.dumps({
    "uid": os.getuid(), "path": sys.path, "environment": sorted(os.environ), "arguments": sys.argv[1:],
    "quote": domain.quote(bytes(range(64)))[:2].hex(), "writable": os.access(__file__, os.W_OK),
    "core": __import__("resource").getrlimit(4)[0],
}), flush=True)
sys.exit(7)
"""


def test_the_copy_runs_with_its_own_packages_and_no_more(
    tmp_path: Path, domain: SimulatedTd, capfd: pytest.CaptureFixture[str]
) -> None:
    agent = tmp_path / "probe.py"
    agent.write_text(PROBE)
    uid = supervise.separate_uid()
    with launch.stage(agent) as staged:
        status = supervise.run(
            staged,
            domain,
            trust=b"{}",
            broker_url="http://127.0.0.1:9",
            environment={"WANTED": "yes"},
            arguments=["one"],
            uid=uid,
        )
        found = json.loads(capfd.readouterr().out)
        inside = [path for path in found["path"] if path.startswith(str(staged.top))]
    assert status == 7
    assert found["arguments"] == ["one"]
    assert found["core"] == 0
    assert found["quote"] == "0400"
    assert len(inside) == 2
    assert all(path.startswith((*inside, sys.base_prefix, sys.base_exec_prefix)) for path in found["path"])
    assert not any("site-packages" in path for path in found["path"])
    given = {"CLOISTER_BROKER", "CLOISTER_DOMAIN_FD", "CLOISTER_TRUST_FILE", "LANG", "PATH", "WANTED"}
    assert set(found["environment"]) - {"LC_CTYPE"} == given  # LC_CTYPE is set by Python itself
    if uid is not None:
        assert (found["uid"], found["writable"]) == (uid, False)


SNOOP = """
import json, os
found = {"uid": os.getuid(), "groups": os.getgroups(), "core": __import__("resource").getrlimit(4)[0]}
top = os.path.dirname(os.path.dirname(__file__))
for name in ("agent/snoop.py", "boot.py"):
    try:
        open(os.path.join(top, name), "a").close()
        found[name] = "written"
    except PermissionError:
        found[name] = "refused"
try:
    os.listdir("/root")
    found["root"] = "read"
except PermissionError:
    found["root"] = "refused"
from enclave.domain import RemoteDomain
found["quote"] = RemoteDomain.inherited().quote(bytes(range(64)))[:2].hex()
print(json.dumps(found), flush=True)
"""


def test_as_root_the_copy_runs_as_a_user_that_can_reach_nothing(
    tmp_path: Path, domain: SimulatedTd, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = Path("/usr/bin/python3")
    version = (
        subprocess.run([str(system), "-V"], capture_output=True, text=True, check=False) if system.exists() else None
    )
    if os.geteuid() != 0 or version is None or f"{sys.version_info[0]}.{sys.version_info[1]}." not in version.stdout:
        pytest.skip("needs root, and this version of Python where every user can read it")
    monkeypatch.setattr(supervise, "interpreter", lambda: str(system))
    agent = tmp_path / "snoop.py"
    agent.write_text(SNOOP)
    uid = supervise.FREE_IDS[0]
    with launch.stage(agent) as staged:
        status = supervise.run(staged, domain, trust=b"{}", broker_url="", environment={}, uid=uid)
        found = json.loads(capfd.readouterr().out)
    assert status == 0
    assert (found["uid"], found["groups"], found["core"], found["quote"]) == (uid, [], 0, "0400")
    assert (found["agent/snoop.py"], found["boot.py"], found["root"]) == ("refused", "refused", "refused")
    assert not staged.top.exists()


def test_without_tdx_and_without_simulated_the_message_says_what_to_add(tmp_path: Path) -> None:
    if Path("/sys/kernel/config/tsm/report").exists():
        pytest.skip("this machine is a trust domain")
    agent = tmp_path / "a.py"
    agent.write_bytes(AGENT)
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "run", str(agent)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "launch.no_tdx" in done.stderr
    assert "--simulated" in done.stderr


def test_the_digest_for_reference_values_is_printed_without_running_anything(tmp_path: Path) -> None:
    agent = tmp_path / "a.py"
    agent.write_bytes(b"raise SystemExit('ran')\n")
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "run", str(agent), "--digest"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    with launch.stage(agent) as staged:
        assert done.stdout.strip() == staged.digest.hex()
    assert (done.returncode, done.stderr) == (0, "")


def cloister_run(tmp_path: Path, *options: str, **environment: str) -> tuple[int, str]:
    agent = tmp_path / "a.py"
    agent.write_bytes(AGENT)
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "run", str(agent), *options],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("line", [["notes.md"], ["agent.py", "--simulate"], []])
def test_a_wrong_command_line_runs_nothing(tmp_path: Path, line: list[str]) -> None:
    (tmp_path / "notes.md").write_text("# not an agent\n")
    (tmp_path / "agent.py").write_text("raise SystemExit(7)\n")
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "run", *line, "--simulated", "--digest"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")


def test_what_is_not_known_is_asked_for(tmp_path: Path) -> None:
    status, said = cloister_run(tmp_path, "--simulated")
    assert (status, "agent.unconfigured" in said, "cloister lab" in said) == (2, True, True)
    status, said = cloister_run(tmp_path, "--simulated", "--trust", str(tmp_path / "none"))
    assert (status, "trust.unreadable" in said) == (2, True)


def test_an_agent_that_nobody_launched_says_how_to_launch_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/hello.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "cloister run" in done.stderr) == (2, True)


def test_where_no_simulator_is_installed_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "provided", lambda _: {})
    assert code_of(cli._simulated, "machine", "td") == Code.LAUNCH_NO_SIMULATOR
    monkeypatch.setattr(cli, "provided", lambda _: {"simulated": "no_such_simulator:make"})
    assert code_of(cli._simulated, "machine", "td") == Code.LAUNCH_NO_SIMULATOR


class Broken:
    """A trust domain whose platform is out of order."""

    name = "broken"
    simulated = True

    def quote(self, report_data: bytes) -> bytes:
        raise OSError("no quote today")

    def event_log(self) -> bytes:
        return b""

    def extend(self, register: int, digest: bytes, *, event_type: int, data: bytes) -> None:
        raise OSError("no register today")


def test_a_domain_that_fails_says_so_and_goes_on(tmp_path: Path) -> None:
    server = DomainServer(Broken())
    theirs = server.theirs.dup()
    server.start()
    remote = RemoteDomain(theirs)
    assert code_of(remote.quote, bytes(64)) == Code.LAUNCH_DOMAIN_FAILED
    assert remote.event_log() == b""
    theirs.close()
    server.close()
