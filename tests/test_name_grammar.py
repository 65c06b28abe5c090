"""One grammar of names: whoever takes or refuses a name of a tenant, resource, agent, tool or label agrees on each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attestation import names
from attestation.errors import MalformedEvidence
from attestation.evidence import Binding, Role
from broker.rest import openapi
from broker.wire import envelope as wire_envelope
from broker.wire import names as wire
from broker.wire import tools
from enclave import Agent
from enclave.errors import AgentError, Code
from policies import mailrules
from policies.engine import judge
from policies.errors import BundleError
from policies.model import ReleaseSecret
from policies.scaffold import starter
from tests.policy_world import NOW, bundle, codes, good_facts, mistakes


@dataclass(frozen=True)
class Ask:
    """Something to hear on a topic."""

    text: str


ROOT = Path(__file__).resolve().parent.parent
EDGES = [
    *("", ".", "..", "a", "-", "_", "a.", ".a", "a..b", "a" * 64, "a" * 65, "A-Z_0.9", "~", "a b", " a", "a ", "a\n"),
    *("\na", "a\0", "a\x7f", "ä", "a\u0301", "ａ", "𝟏", "١", "İ", "%2e", "%41", "a\\b", '"', "'", "*", "\ud800", "a:b"),
]
PATHS = [
    *(
        "/",
        "a/",
        "/a",
        "a//b",
        "a/.",
        "a/..",
        "a/../b",
        "a/.b",
        "a/b\n",
        "a/b/",
        "./a",
        "a/b\\c",
        "a\u2215b",
        "a\uff0fb",
    ),
    *("/".join("a" * count) for count in (1, 2, 7, 8, 9)),
    *("/".join([part] * count) for part in ("x" * 64, "x" * 65) for count in (2, 8)),
]
WORDS = st.text(st.sampled_from("aZ09_-./ \n:~%é\0"), max_size=8) | st.text(max_size=6)
SEGMENTS = st.sampled_from(EDGES) | WORDS
RESOURCES = st.sampled_from(PATHS) | st.lists(SEGMENTS, max_size=9).map("/".join) | WORDS


def plainly_a_segment(text: str) -> bool:
    """The grammar again, said another way."""
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
    return 1 <= len(text) <= 64 and set(text) <= allowed and not text.startswith(".")


def plainly_a_resource(text: str) -> bool:
    parts = text.split("/")
    return 2 <= len(parts) <= 8 and all(map(plainly_a_segment, parts))


def binds(tenant: str) -> bool:
    """Whether a quote can bind an agent of that tenant."""
    try:
        Binding(
            role=Role.AGENT,
            tenant=tenant,
            broker_id=bytes(32),
            nonce=bytes(32),
            identity_key=b"",
            suite="",
            sealing_key=b"",
            trust_file_digest=bytes(32),
        )
    except MalformedEvidence as error:
        return "tenant" not in error.detail
    return True


def loads(tenant: str) -> bool:
    """Whether a bundle for that tenant is one."""
    made = starter("dev")
    written = "".join(f"\\U{ord(char):08x}" for char in tenant)
    made["bundle.toml"] = made["bundle.toml"].replace(b'tenant = "dev"', f'tenant = "{written}"'.encode())
    return not any(problem.detail.startswith("tenant") for problem in mistakes(made))


def starts(tenant: str) -> bool:
    """Whether a bundle can be written for that tenant."""
    try:
        starter("dev", tenant=tenant)
    except BundleError:
        return False
    return tenant != ""  # nothing named is the starter's own


def judged(name: str) -> bool:
    """Whether a policy looks at rules for that name; else the name itself is an objection."""
    judgement = judge(bundle(), good_facts(), ReleaseSecret(name), context=NOW)
    return "policy.resource_name_invalid" not in codes(judgement.reasons)


@settings(max_examples=150)
@given(SEGMENTS)
def test_everybody_agrees_what_a_tenant_is(text: str) -> None:
    expected = plainly_a_segment(text)
    assert bool(names.SEGMENT.fullmatch(text)) == expected
    assert bool(wire.TENANT.fullmatch(text)) == bool(tools.NAME.fullmatch(text)) == expected
    assert starts(text) == expected


@settings(max_examples=150)
@given(RESOURCES)
def test_everybody_agrees_what_a_resource_is(text: str) -> None:
    expected = plainly_a_resource(text)
    assert names.is_resource(text) == wire.is_resource(text) == expected
    assert (names.name_problem(text) == "") == expected
    assert bool(wire.RESOURCE.fullmatch(text)) == expected
    if expected:
        assert plainly_a_segment(wire.tenant_of(text))
        assert re.fullmatch(openapi._NAME["pattern"], text)


@settings(max_examples=40)
@given(st.sampled_from(PATHS) | st.lists(SEGMENTS, min_size=1, max_size=3).map(lambda parts: "/".join(["dev", *parts])))
@example("dev/models/x")
def test_a_policy_judges_no_other_names(text: str) -> None:
    assert judged(text) == plainly_a_resource(text)


@pytest.mark.parametrize("text", EDGES, ids=ascii)
def test_a_quote_binds_and_a_bundle_loads_tenants_and_nothing_else(text: str) -> None:
    assert binds(text) == plainly_a_segment(text)
    assert loads(text) == plainly_a_segment(text) or text == "\ud800"  # no TOML file holds that


@pytest.mark.parametrize("text", [*EDGES, *PATHS], ids=ascii)
def test_an_agent_names_its_mailboxes_and_topics_by_the_same_grammar(text: str) -> None:
    taken = True
    try:
        Agent("researcher").on_topic(text, Ask)
    except AgentError as error:
        taken = error.code is not Code.AGENT_NAME
    assert taken == (plainly_a_segment(text) or plainly_a_resource(text))


@settings(max_examples=60)
@given(SEGMENTS)
def test_a_subject_holds_a_tenant_and_one_key(text: str) -> None:
    subject = f"agent/{text}/{'k' * 43}"
    assert bool(wire.SUBJECT.fullmatch(subject)) == plainly_a_segment(text)
    assert not wire.SUBJECT.fullmatch(subject + "\n")
    assert not plainly_a_segment(text) or len(subject) <= wire.MAX_SUBJECT


def test_labels_are_the_same_in_policies_and_on_the_wire() -> None:
    for module in (mailrules, wire_envelope):
        assert vars(module)["LABEL"] is names.LABEL
    assert [
        label for label in ("a", "a:b", ".a", "-a", ":a", "a" * 64, "a" * 65, "a\n") if names.LABEL.fullmatch(label)
    ] == ["a", "a:b", "a" * 64]


def test_the_grammar_is_written_once() -> None:
    """A second copy would drift: whoever checks a name takes the pattern from `attestation.names`."""
    shape = re.compile(r"\{1,64\}|\{0,63\}")
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("attestation", "policies", "enclave", "broker")
        for path in (ROOT / package).rglob("*.py")
        if any(
            shape.search(line) and "A-Za-z0-9" in line and "re.compile" in line
            for line in path.read_text().splitlines()
        )
    }
    assert found == {
        "attestation/names.py",
        "broker/wire/terms.py",  # names of a secret's notes
        "broker/wire/tools.py",  # compared above
        "policies/readsettings.py",  # names of workloads, which start with a letter or digit
    }
