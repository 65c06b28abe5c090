"""The pytest plugin: light to load, the documented example runs as it stands, hardware can be ruled out."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import given, settings

from attestation.collateral import Collateral
from attestation.pki import TrustRoots
from attestation.quote import Quote
from attestation.verifier import verify_quote
from simulator.registry import Exhibit
from simulator.strategies import machines, quotes, report_data

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "testing-agents.md"
BLOCK = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
pytestmark = pytest.mark.timeout(120)


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """A pytest of its own; the plugin comes through its entry point, or by name where only the checkout is there."""
    pytester.syspathinsert(ROOT)
    installed = entry_points(group="pytest11", name="cloister")
    plugin = () if installed else ("-p", "simulator.pytest_plugin")
    return pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)


def test_the_guide_s_examples_pass_as_they_stand(pytester: pytest.Pytester) -> None:
    files = dict(BLOCK.findall(GUIDE.read_text()))
    assert set(files) == {"greeter.py", "test_greeter.py", "shop.py", "test_shop.py", "test_service.py"}
    for name, text in files.items():
        (pytester.path / name).write_text(text)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error")
    run(pytester).assert_outcomes(passed=7)


def test_the_guide_names_every_fixture(pytester: pytest.Pytester) -> None:
    listed = run(pytester, "--fixtures").stdout.str()
    for name in ("tdx_machine", "trust_domain", "collateral", "clock", "broker", "agent", "peer", "hostile_agent"):
        assert re.search(rf"^{name}\b.*", listed, re.MULTILINE)
        assert f"`{name}`" in GUIDE.read_text()


def test_fixtures_belong_to_one_machine_that_is_new_in_each_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from datetime import timedelta
        import pytest
        from attestation.quote import Quote
        from attestation.verifier import verify_quote

        DATA = bytes(range(64))

        @pytest.mark.parametrize("turn", [1, 2])
        def test_they_fit(turn, tdx_machine, trust_domain, collateral, clock):
            assert not clock.moved
            assert trust_domain.rtmrs[3] == bytes(48)
            quote = Quote.parse(trust_domain.quote(DATA))
            roots = tdx_machine.roots
            verified = verify_quote(quote, collateral, report_data=DATA, roots=roots, at=clock.now())
            assert verified.tcb_status == "UpToDate"
            clock.advance(timedelta(days=400))
            trust_domain.extend_unlogged(3, bytes(48))

        def test_the_broker_has_the_machine_s_time(broker, clock):
            before = broker.broker.clock()
            clock.advance(timedelta(days=1))
            assert broker.broker.clock() - before >= timedelta(hours=23)
            assert broker.trust.tenant == "lab"
            assert broker.put_secret("lab/a/b", b"1") == 1
            assert broker.put_secret("lab/a/b", b"2") == 2
        """
    )
    run(pytester).assert_outcomes(passed=3)


def test_a_broker_that_cannot_start_says_why(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from simulator.broker_fixture import BrokerUnderTest

        def test_a_bundle_that_is_none(tdx_machine, tmp_path):
            with pytest.raises(RuntimeError, match="did not start") as caught:
                with BrokerUnderTest(tdx_machine, tmp_path, bundle={"bundle.toml": b"nonsense"}):
                    pass
            assert caught.value.__cause__ is not None
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_hardware_can_be_ruled_out(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncloister_allow_real_tdx = false")
    pytester.makepyfile(
        """
        import subprocess, sys
        import pytest
        from enclave.errors import TdxError
        from enclave.tdx import TdxTrustDomain

        def test_here():
            with pytest.raises(TdxError) as caught:
                TdxTrustDomain()
            assert caught.value.code == "tdx.forbidden"

        def test_in_other_processes():
            asked = "import enclave.tdx; print(enclave.tdx.ALLOW_REAL_TDX)"
            assert subprocess.check_output([sys.executable, "-c", asked]).strip() == b"False"
        """
    )
    run(pytester).assert_outcomes(passed=2)


def test_loading_the_plugin_loads_nothing_else() -> None:
    program = (
        "import sys, simulator.pytest_plugin;"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] in"
        " ('attestation', 'policies', 'enclave', 'broker', 'cryptography', 'hypothesis', 'mfusepy', 'fastapi')))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# --- strategies ---


@settings(max_examples=20)
@given(exhibit=quotes())
def test_quotes_of_the_strategy_are_genuine(exhibit: Exhibit) -> None:
    from datetime import UTC, datetime

    verified = verify_quote(
        Quote.parse(exhibit.quote),
        Collateral.from_json(exhibit.collateral),
        report_data=exhibit.report_data,
        roots=TrustRoots.from_pem(exhibit.root_pem),
        at=datetime.fromtimestamp(exhibit.at, UTC),
    )
    assert verified.tcb_status == "UpToDate"


@settings(max_examples=20)
@given(data=report_data(), machine=machines())
def test_machines_and_report_data_are_usable(data: bytes, machine: object) -> None:
    assert len(data) == 64
    assert any(data)
    assert machine is not None
