"""Which descriptions of tools a bundle approves: how it says so, and that a change of it shows."""

import pytest

from policies.bundle import MAIN, bundle_of
from policies.codes import BundleCode
from policies.diff import diff
from tests.policy_world import files, mistakes

PIN = "ab" * 32
PINS = f"""
[[tool]]
name = "dev/tools/desk/refund"
digest = "{PIN}"

[[tool]]
name = "dev/tools/desk/look"
digest = "{"cd" * 32}"
""".encode()


def with_tools(text: bytes) -> dict[str, bytes]:
    made = dict(files("dev"))
    made[MAIN] += text
    return made


def test_a_bundle_approves_tools_by_the_names_that_its_rules_have_for_them() -> None:
    assert dict(bundle_of(with_tools(PINS)).settings.tools)["dev/tools/desk/refund"] == PIN
    assert bundle_of(files("dev")).settings.tools == ()


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"dev/tools/desk/look", b"dev/tools/desk/refund", BundleCode.DUPLICATE),
        (b"dev/tools/desk/look", b"other/tools/desk/look", BundleCode.VALUE),
        (b"dev/tools/desk/look", b"dev/mail/desk/look", BundleCode.VALUE),
        (b"dev/tools/desk/look", b"dev/tools/look", BundleCode.VALUE),
        (b"dev/tools/desk/look", b"dev/tools//look", BundleCode.VALUE),
        (b'"cd', b'"CD', BundleCode.VALUE),
        (b'"cd', b'"', BundleCode.VALUE),
        (b'name = "dev/tools/desk/look"\n', b"", BundleCode.KEY_MISSING),
        (b'digest = "cd', b'digset = "cd', BundleCode.KEY_UNKNOWN),
        (b'digest = "cd', b'#"', BundleCode.KEY_MISSING),
    ],
)
def test_a_mistake_in_it_is_refused(old: bytes, new: bytes, code: BundleCode) -> None:
    assert old in PINS
    assert code in {item.code for item in mistakes(with_tools(PINS.replace(old, new)))}


def test_another_approval_shows_in_a_diff() -> None:
    old, new = bundle_of(with_tools(PINS)), bundle_of(with_tools(PINS.replace(PIN.encode(), b"ef" * 32)))
    assert [(one.what, one.old, one.new) for one in diff(old, new)] == [("tool dev/tools/desk/refund", PIN, "ef" * 32)]
    removed = {change.what: (change.old, change.new) for change in diff(old, bundle_of(files("dev")))}
    assert removed["tool dev/tools/desk/refund"] == (PIN, "none")
