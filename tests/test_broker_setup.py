"""Settings that teach, a broker that is set up by one command, and the commands that talk to it."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker import cli
from broker.commands.admin_client import AdminClient, AdminError, load_key
from broker.commands.setup import initialise
from broker.config import Admin, Settings, load
from broker.errors import BrokerCode, BrokerError
from broker.service import build
from broker.telemetry import JsonLines
from broker.wire.log import broker_id, parse_verifier_key
from enclave.trustfile import TrustFile
from simulator.machine import Machine
from tests.broker_world import write_bundle

ROOT = Path(__file__).resolve().parent.parent
GOOD: dict[str, Any] = {"public_url": "http://127.0.0.1:8443", "bundles": (Path("policy"),)}
PRODUCTION: dict[str, Any] = {
    "profile": "production",
    "public_url": "https://broker.example",
    "bundles": (Path("policy"),),
    "database": Path("broker.db"),
    "root_key_file": Path("root.json"),
    "admins": (Admin(name="a", jkt="A" * 43),),
}


def refused(**members: Any) -> str:
    with pytest.raises(BrokerError) as caught:
        Settings(**members)
    assert caught.value.code is BrokerCode.CONFIG_INVALID
    return caught.value.detail


# ── settings ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"public_url": "broker.example"}, "server.public_url"),
        ({"public_url": "http://x/"}, "server.public_url"),
        ({"public_url": "http://user@x"}, "server.public_url"),
        ({"public_url": "http://x?y"}, "server.public_url"),
        ({"profile": "testing"}, "profile"),
        ({"bundles": ()}, "policy.bundles"),
        ({"port": 0}, "server.port"),
        ({"token_ttl_s": 3600}, "tokens.ttl_s"),
        ({"refresh_s": 0}, "collateral.refresh_s"),
        ({"database": Path("x")}, "root.key_file"),
        ({"admins": (Admin(name="a", jkt="short"),)}, "thumbprint"),
        ({"signers_needed": 0}, "policy.threshold"),
        ({"signers": (Path("a.pub"),), "signers_needed": 2}, "policy.threshold"),
        ({"admins": (Admin(name="a", jkt="A" * 43, role="king"),)}, "role"),
        ({"admins": (Admin(name="a", jkt="A" * 43), Admin(name="b", jkt="A" * 43))}, "one key"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], names: str) -> None:
    assert names in refused(**(GOOD | changes))


def test_every_mistake_is_named_at_once() -> None:
    detail = refused(public_url="x", bundles=(), port=-1)
    assert all(name in detail for name in ("server.public_url", "policy.bundles", "server.port"))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"public_url": "http://broker.example"}, "https"),
        ({"database": None}, "store.database"),
        ({"admins": ()}, "admins"),
        ({"roots_file": Path("other.pem")}, "foreign_roots"),
        ({"witness_url": "http://witness.example", "witness_key": "w+00+AA=="}, "witness.url"),
    ],
    ids=str,
)
def test_production_is_stricter(changes: dict[str, Any], names: str) -> None:
    Settings(**PRODUCTION)
    assert names in refused(**(PRODUCTION | changes))


def test_production_shows_no_console_unless_it_is_said() -> None:
    assert Settings(**(PRODUCTION | {"profile": "development"})).shows_console
    assert not Settings(**PRODUCTION).shows_console
    assert Settings(**(PRODUCTION | {"console": True})).shows_console


def test_production_takes_another_root_when_it_is_said_twice() -> None:
    assert Settings(**(PRODUCTION | {"roots_file": Path("other.pem"), "foreign_roots": True})).production


def written(folder: Path, text: str) -> Path:
    (folder / "broker.toml").write_text(text)
    return folder / "broker.toml"


MINIMAL = '[server]\npublic_url = "http://127.0.0.1:8443"\n[policy]\nbundles = ["policy"]\n'


def test_settings_come_from_the_file_and_the_environment_wins(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + '[mail]\nmessages = 5\n[[admins]]\nname = "a"\njkt = "' + "A" * 43 + '"\n')
    found = load(path, {"CLOISTER_BROKER_SERVER_PORT": "9000", "CLOISTER_BROKER_SERVER_CONSOLE": "false"})
    assert (found.port, found.console, found.quota.messages) == (9000, False, 5)
    assert found.bundles == (tmp_path / "policy",)
    assert found.admins == (Admin(name="a", jkt="A" * 43),)


@pytest.mark.parametrize(
    ("text", "environ", "names"),
    [
        (MINIMAL + "[server2]\nx = 1\n", {}, "server2.x is unknown"),
        (MINIMAL.replace("public_url", "publc_url"), {}, "server.public_url is missing"),
        (MINIMAL + "[store]\ndatabase = 7\n", {}, "store.database must be a path"),
        (MINIMAL, {"CLOISTER_BROKER_SERVER_PORT": "many"}, "server.port must be a whole number"),
        (MINIMAL, {"CLOISTER_BROKER_SERVER_CONSOLE": "maybe"}, "true or false"),
        (MINIMAL + "[[admins]]\nkey = 1\n", {}, "[[admins]]"),
        (MINIMAL + '[admins]\nname = "a"\njkt = "' + "A" * 43 + '"\n', {}, "[[admins]]"),
        ("[server", {}, "broker.toml"),
        pytest.param("x = " + "[" * 9_000, {}, "broker.toml", id="nested too deeply"),
        pytest.param("x = " + "1" * 9_000, {}, "broker.toml", id="a number too long"),
    ],
    ids=str,
)
def test_a_file_that_is_wrong_teaches(tmp_path: Path, text: str, environ: dict[str, str], names: str) -> None:
    with pytest.raises(BrokerError, match=r"config\.invalid") as caught:
        load(written(tmp_path, text), environ)
    assert names in caught.value.detail


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="broker init"):
        load(tmp_path / "none.toml", {})


def test_a_broker_does_not_start_with_another_root_key(tmp_path: Path) -> None:
    machine = Machine.create(seed="x")
    settings = Settings(
        public_url="http://broker.test",
        bundles=(write_bundle(tmp_path / "policy"),),
        database=tmp_path / "a.db",
        root_key_file=tmp_path / "root.json",
    )
    from broker.rootkey import keyfile

    async def start() -> str:
        try:
            broker = await build(settings, clock=machine.clock.now, collateral=machine.as_source(), roots=machine.roots)
        except BrokerError as error:
            return str(error.code)
        await broker.close()
        return "ok"

    keyfile.create(tmp_path / "root.json")
    assert asyncio.run(start()) == "ok"
    (tmp_path / "root.json").unlink()
    keyfile.create(tmp_path / "root.json")
    assert asyncio.run(start()) in (BrokerCode.ROOT_WRONG, BrokerCode.STORE_ROW_FORGED)


def test_log_lines_are_json_without_the_text_of_exceptions() -> None:
    try:
        raise ValueError("hunter2")
    except ValueError:
        record = logging.getLogger("cloister.x").makeRecord(
            "cloister.x", logging.ERROR, "f", 1, "event", (), sys.exc_info(), extra={"codes": ["a"]}
        )
    line = json.loads(JsonLines().format(record))
    assert (line["event"], line["codes"], line["exception"]) == ("event", ["a"], "ValueError")
    assert "hunter2" not in json.dumps(line)


# ── the commands ───────────────────────────────────────────────────────────────────────────────────────────────────


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A broker that was set up and is served by the commands themselves."""

    folder: Path
    url: str

    def run(self, *arguments: str, status: int = 0, stdin: bytes = b"") -> Any:
        """A `cloister` command with --json; its object."""
        environ = os.environ | {"CLOISTER_BROKER": self.url, "CLOISTER_KEY_FILE": str(self.folder / "admin.pem")}
        done = subprocess.run(
            [sys.executable, "-m", "cloister", *arguments, "--json"],
            cwd=ROOT,
            env=environ,
            input=stdin,
            capture_output=True,
            check=False,
        )
        assert done.returncode == status, done.stderr.decode()
        return json.loads(done.stdout) if done.stdout else done.stderr.decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / "broker"
    port = free_port()
    made = Served(folder=folder, url=f"http://127.0.0.1:{port}")
    told = made.run("broker", "init", str(folder), "--tenant", "acme", "--kind", "lab", "--port", str(port))
    assert len(bytes.fromhex(told["broker_id"])) == 32
    with subprocess.Popen(
        [sys.executable, "-m", "cloister", "broker", "serve", str(folder), "--json"],
        cwd=ROOT,
        env=os.environ | {"CLOISTER_BROKER_GRPC_PORT": "0"},  # the port after the first may be somebody else's
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read().decode()
        told = json.loads(line)
        assert told["broker_url"] == made.url
        with socket.create_connection(told["grpc_address"].rsplit(":", 1), 10):
            pass
        yield made
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
        told_at_end = process.stderr.read().decode()
        assert "Traceback" not in told_at_end
        assert all(json.loads(item) for item in told_at_end.splitlines())


def test_a_folder_is_set_up_once(served: Served) -> None:
    again = served.run("broker", "init", str(served.folder), status=2)
    assert again["code"] == BrokerCode.CONFIG_INVALID
    assert (served.folder / "admin.pem").stat().st_mode & 0o777 == 0o600
    assert (served.folder / "root.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("there", [False, True])
def test_a_set_up_that_fails_leaves_nothing_behind_and_can_be_tried_again(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "broker"
    if there:
        folder.mkdir()
    for wrong in (("--tenant", "a b"), ("--root", str(tmp_path / "none.pem"))):
        assert CliRunner().invoke(cli.broker, ["init", str(folder), *wrong]).exit_code == 2
        assert folder.exists() == there
        assert not there or not any(folder.iterdir())
    assert CliRunner().invoke(cli.broker, ["init", str(folder), "--tenant", "acme"]).exit_code == 0


def test_a_set_up_that_fails_touches_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert CliRunner().invoke(cli.broker, ["init", str(tmp_path), "--tenant", "a b"]).exit_code == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_init_writes_is_what_agents_read(served: Served) -> None:
    trust = TrustFile.load(served.folder / "trust.json")
    _, log_key = parse_verifier_key((served.folder / "log.vkey").read_text())
    assert (trust.tenant, trust.broker_id, trust.broker_url) == ("acme", broker_id(log_key), served.url)


def test_secrets_are_put_rotated_listed_and_destroyed_and_never_shown(served: Served, tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"hunter2")
    assert served.run("secret", "put", "acme/a/b", str(tmp_path / "value"), "--label", "x")["version"] == 1
    assert served.run("secret", "put", "acme/a/c", "-", stdin=b"piped")["version"] == 1
    assert served.run("secret", "rotate", "acme/a/b")["version"] == 2
    listed = served.run("secret", "list")
    assert [(item["name"], item["version"]) for item in listed["secrets"]] == [
        ("acme/a/b", 1),
        ("acme/a/b", 2),
        ("acme/a/c", 1),
    ]
    assert "hunter2" not in json.dumps(listed)
    assert served.run("secret", "destroy", "acme/a/b", "--version", "1") == {"destroyed": 1}
    assert served.run("secret", "destroy", "acme/a/zzz", status=1)["code"] == BrokerCode.SECRET_UNKNOWN
    assert served.run("secret", "put", "other/a/b", "-", status=1)["code"] == BrokerCode.ATTESTATION_TENANT


def test_terms_releases_and_leases_have_their_commands(served: Served) -> None:
    terms = ("--lease", "60", "--draw", "--meta", "owner=team a")
    put = served.run("secret", "put", "acme/lent/a", "-", *terms, stdin=b"lent")
    assert put["terms"] == {"lease_s": 60, "draw": True, "meta": {"owner": "team a"}}
    assert served.run("secret", "put", "acme/lent/a", "-", "--meta", "x", stdin=b"a", status=2)["code"] == "secret.meta"
    assert served.run("secret", "releases", "--secret", "acme/lent/a") == {"releases": []}
    assert served.run("secret", "leases") == {"leases": []}
    unknown = served.run("secret", "end-lease", "acme/lent/a", "1", "agent/acme/x", status=1)
    assert unknown["code"] == BrokerCode.SECRET_UNKNOWN


def test_usage_and_unreachable_brokers_have_their_exit_status(served: Served, tmp_path: Path) -> None:
    assert served.run("secret", "put", "acme/a/b", str(tmp_path / "none"), status=2)["code"] == "secret.file"
    elsewhere = f"http://127.0.0.1:{free_port()}"
    assert served.run("broker", "status", "--broker", elsewhere, status=4)["code"] == "broker.unreachable"
    assert served.run("broker", "status", "--broker", "nonsense", status=2)["code"] == "admin.url"
    assert served.run("broker", "status", "--key-file", str(tmp_path / "none"), status=2)["code"] == "admin.key_file"


def test_status_agents_and_the_log_are_shown(served: Served) -> None:
    status = served.run("broker", "status")
    assert status["agents"] == {"admitted": 0, "quarantined": 0, "revoked": 0}
    assert served.run("agent", "list") == {"agents": []}
    assert served.run("agent", "show", "agent/acme/x", status=1)["code"] == BrokerCode.AGENT_UNKNOWN
    assert served.run("agent", "revoke", "agent/acme/x", status=1)["code"] == BrokerCode.AGENT_UNKNOWN
    entries = served.run("audit", "show", "--limit", "2")["entries"]
    assert [item["entry"]["kind"] for item in entries] == ["generation.changed", "broker.started"]
    assert served.run("broker", "reload")["policies"].keys() == {"acme"}
    assert served.run("broker", "rotate-keys") == served.run("broker", "rotate-keys"), "one successor at a time"


def test_the_log_is_verified_offline_and_entries_are_proved(served: Served) -> None:
    vkey = str(served.folder / "log.vkey")
    verified = served.run("audit", "verify", str(served.folder / "broker.sqlite"), "--log-key", vkey)
    assert verified["ok"]
    assert served.run("audit", "prove", "0", "--log-key", vkey)["index"] == 0
    assert served.run("audit", "prove", "99999", status=1)["code"] == BrokerCode.LOG_ENTRY_UNKNOWN
    assert served.run("audit", "verify", "/nowhere", "--log-key", vkey, status=2)["code"] == "audit.file"
    database = str(served.folder / "broker.sqlite")
    assert served.run("audit", "verify", database, "--log-key", database, status=2)["code"] == "audit.file"


def test_a_stranger_is_refused(served: Served, tmp_path: Path) -> None:
    made = initialise_elsewhere(tmp_path)
    client = AdminClient(served.url, load_key(made / "admin.pem"))
    with pytest.raises(AdminError) as caught:
        client.get("/v1/status")
    assert (caught.value.code, caught.value.status) == (BrokerCode.ADMIN_KEY_UNKNOWN, 1)


def initialise_elsewhere(folder: Path) -> Path:
    from datetime import UTC, datetime

    made = initialise(
        folder / "other",
        public_url="http://127.0.0.1:1",
        host="127.0.0.1",
        port=1,
        tenant="acme",
        kind="lab",
        profile="development",
        pcs_url="http://127.0.0.1:2",
        roots_file=None,
        at=datetime.now(UTC),
    )
    return made.folder
