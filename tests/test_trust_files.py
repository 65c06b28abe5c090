"""One trust file, three who read it: what an agent refuses, its broker and a holder of shares refuse too."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestation import provided
from broker.commands.admin_client import AdminError
from broker.commands.unsealing import _trust_file as of_a_holder
from broker.domains import trust_file as of_a_broker
from broker.errors import BrokerError
from broker.wire.log import broker_id
from enclave.errors import TrustFileError
from enclave.trustfile import TrustFile

ID = f'[broker]\nid = "{broker_id(b"k" * 32).hex()}"\n'
REFERENCE = f"""[broker.reference]
mr_td = "{"aa" * 48}"
rtmr1 = "{"bb" * 48}"
rtmr2 = "{"cc" * 48}"
launches = []
platforms = ["{"00" * 16}"]
"""
INTEL = "[roots]\nintel = true\n"
GOOD = f'version = 1\ntenant = "t"\n{ID}{REFERENCE}{INTEL}'
MEMBERS = '"tenant": "t", "roots": {"intel": true}, "broker": {"id": "' + "00" * 32 + '"}'


def test_the_three_read_the_same_out_of_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(GOOD)
    agents, brokers, (holders, reference) = TrustFile.load(path), of_a_broker(path), of_a_holder(path)
    assert agents.digest == brokers.digest == holders.digest
    assert agents.roots.sha256 == brokers.roots.sha256 == holders.roots.sha256
    assert agents.broker_reference == brokers.broker_reference == reference


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="empty JSON"),
        pytest.param(GOOD.replace("version = 1", "version = 2"), id="another version"),
        pytest.param(GOOD + 'pem = ["x"]\n', id="two kinds of roots"),
        pytest.param(GOOD + "itnel = true\n", id="a misspelt member"),
        pytest.param(GOOD + "[polices]\nsigners = []\n", id="a misspelt table"),
        pytest.param(GOOD.replace("rtmr1", "rtmr9"), id="an unknown register"),
        pytest.param(GOOD.replace('"t"', '"a/b"'), id="no tenant"),
        pytest.param(GOOD + "#" * 300_000, id="too large"),
        pytest.param('{"version": 1, "version": 1, ' + MEMBERS + "}", id="a member twice"),
        pytest.param("a = " + "[" * 5_000, id="too deep"),
        pytest.param("a = " + "1" * 5_000, id="a number too long"),
    ],
)
def test_what_one_of_them_refuses_the_others_refuse(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(text)
    with pytest.raises(TrustFileError):
        TrustFile.load(path)
    with pytest.raises(BrokerError):
        of_a_broker(path)
    with pytest.raises(AdminError):
        of_a_holder(path)


def test_a_holder_needs_a_file_that_says_what_the_broker_is(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(GOOD.replace(REFERENCE, ""))
    assert of_a_broker(path).broker_reference is None
    with pytest.raises(AdminError, match=r"broker\.reference"):
        of_a_holder(path)


def test_a_checkout_declares_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provided, "entry_points", lambda **_: ())
    assert {"tdx", "simulated"} <= provided.provided("cloister.trust_domain").keys()
    assert provided.provided("no.such.group") == {}


def test_another_projects_file_beside_the_packages_declares_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = '[project]\nname = "other"\n[project.entry-points."cloister.commands"]\nlab = "other:lab"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(provided, "__file__", str(tmp_path / "attestation" / "provided.py"))
    assert provided.checkout() == {}
