"""Loading a bundle: every mistake is refused with its file, its line and a suggestion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from policies.bundle import Bundle, bundle_of, digest_of, load_bundle, read_files
from policies.codes import MEANING, BundleCode, DecisionCode, PolicyCode
from policies.errors import BundleError
from policies.scaffold import starter, write
from policies.signing import FILE, PrivateKey, Signers, key_id, render, sign
from policies.tables import line_map
from tests.policy_world import AT, Files, bundle, files, mistakes

MAIN, VALUES, RULES = "bundle.toml", "reference-values.toml", "policy.cedar"


@dataclass(frozen=True, slots=True)
class Mistake:
    """An edit of the development starter, and what loading says to it; `at` is a text on the blamed line."""

    name: str
    file: str
    old: str
    new: str
    code: BundleCode
    at: str
    hint: str = ""


MISTAKES = [
    Mistake("misspelt key", MAIN, "max_age_s", "max_ages", BundleCode.KEY_UNKNOWN, "max_ages", "max_age_s"),
    Mistake("missing key", MAIN, "version = 1 ", "", BundleCode.KEY_MISSING, "", "add version"),
    Mistake("missing platforms", MAIN, 'platforms = "any"', "", BundleCode.KEY_MISSING, "", "platforms_until"),
    Mistake("undated any", MAIN, "platforms_until", "platforms_untill", BundleCode.KEY_MISSING, "", "platforms_until"),
    Mistake("wrong type", MAIN, "version = 1", 'version = "1"', BundleCode.TYPE, "version", "version = 1"),
    Mistake("a flag for a number", MAIN, "max_age_s = 600", "max_age_s = true", BundleCode.TYPE, "max_age_s"),
    Mistake("version zero", MAIN, "version = 1", "version = 0", BundleCode.VALUE, "version"),
    Mistake("unknown state", MAIN, '"UpToDate"', '"Uptodate"', BundleCode.VALUE, "accept", "'UpToDate'"),
    Mistake("Revoked accepted", MAIN, '"UpToDate"', '"Revoked"', BundleCode.VALUE, "accept"),
    Mistake("no date", MAIN, '"2027-12-31"', '"31.12.2027"', BundleCode.VALUE, "platforms_until", "2027-06-30"),
    Mistake(
        "a time without a zone", MAIN, '"2027-12-31"', '"2027-12-31T10:00:00"', BundleCode.VALUE, "platforms_until"
    ),
    Mistake("no advisory", MAIN, "INTEL-SA-00615", "SA-615", BundleCode.VALUE, "allow"),
    Mistake("TOML broken", MAIN, "[tcb]", "[tcb", BundleCode.SYNTAX, "[tcb"),
    Mistake(
        "grace no looser",
        MAIN,
        "[freshness]",
        '[tcb.grace]\nuntil = "2027-01-01"\n[freshness]',
        BundleCode.RULE_NEVER_FIRES,
        "[tcb.grace]",
    ),
    Mistake(
        "unknown allowance",
        MAIN,
        "[freshness]",
        '[[allowance]]\nname = "migratble"\nuntil = "2027-01-01"\n[freshness]',
        BundleCode.VALUE,
        "name = ",
        "migratable",
    ),
    Mistake(
        "allowance twice",
        MAIN,
        "[freshness]",
        '[[allowance]]\nname = "migratable"\nuntil = "2027-01-01"\n' * 2 + "[freshness]",
        BundleCode.DUPLICATE,
        "[[allowance]]",
    ),
    Mistake("short measurement", VALUES, 'mr_td = "2f', 'mr_td = "f', BundleCode.VALUE, "mr_td", "96 lower-case"),
    Mistake("upper-case measurement", VALUES, 'mr_td = "2f', 'mr_td = "2F', BundleCode.VALUE, "mr_td", 'write "2f'),
    Mistake("no provenance", VALUES, "source = ", "sauce = ", BundleCode.KEY_UNKNOWN, "sauce", "source"),
    Mistake(
        "any firmware for ever", VALUES, 'mr_td = "2f', 'mr_td = "any" # "2f', BundleCode.KEY_MISSING, "mr_td", "until"
    ),
    Mistake(
        "launches in an unknown image",
        VALUES,
        "rtmr2 = ",
        f'launches = ["{"1" * 96}"]\n# ',
        BundleCode.LAUNCH_NOT_PINNED,
        "launches",
    ),
    Mistake(
        "more launches of nothing",
        VALUES,
        "rtmr2 = ",
        "more_launches = true\nrtmr2 = ",
        BundleCode.RULE_NEVER_FIRES,
        "more_launches",
    ),
    Mistake(
        "workload twice",
        VALUES,
        "[[workload]]",
        '[[workload]]\nname = "agent"\n[[workload.value]]\nsource = "s"\nmr_td = "any"\n'
        "until = 2027-01-01\n[[workload]]",
        BundleCode.DUPLICATE,
        "[[workload]]",
    ),
    Mistake("bad keyword", RULES, "\nforbid (", "\nforbidd (", BundleCode.SYNTAX, ""),
    Mistake(
        "clause misspelt",
        RULES,
        'when { resource.labels.contains("harmless") }',
        "wenn { true }",
        BundleCode.SYNTAX,
        "wenn",
        "when",
    ),
    Mistake("no id", RULES, '@id("never-production")\n', "", BundleCode.RULE_ID, "forbid (", "@id"),
    Mistake("id twice", RULES, '@id("never-production")', '@id("admit-agents")', BundleCode.DUPLICATE, "", "own @id"),
    Mistake(
        "unknown attribute",
        RULES,
        "principal.tcb_status",
        "principal.tcb_state",
        BundleCode.RULE_INVALID,
        "tcb_state",
        "tcb_status",
    ),
    Mistake(
        "unknown in the context",
        RULES,
        "context.standing",
        "context.standin",
        BundleCode.RULE_INVALID,
        "standin",
        "standing",
    ),
    Mistake("unknown action", RULES, 'Action::"Admit"', 'Action::"Admitt"', BundleCode.RULE_INVALID, "Admitt", "Admit"),
    Mistake("unknown type", RULES, 'Path::"dev/tools"', 'Folder::"dev/tools"', BundleCode.RULE_INVALID, "Folder"),
    Mistake(
        "number against text",
        RULES,
        'principal.tcb_status == "UpToDate"',
        "principal.tcb_status == 3",
        BundleCode.RULE_INVALID,
        "",
        "quotes",
    ),
    Mistake(
        "unguarded optional",
        RULES,
        'principal.tcb_status == "UpToDate"',
        "principal.smt_enabled",
        BundleCode.RULE_INVALID,
        "smt_enabled",
        "has smt_enabled",
    ),
    Mistake(
        "a template",
        RULES,
        'resource == Tenant::"dev"',
        "resource == ?resource",
        BundleCode.RULE_INVALID,
        "",
        "name the thing",
    ),
    Mistake(
        "another tenant's path",
        RULES,
        'Path::"dev/secrets"',
        'Path::"prod/secrets"',
        BundleCode.RULE_NEVER_FIRES,
        "",
        "dev/secrets",
    ),
    Mistake(
        "another tenant", RULES, 'Tenant::"dev"', 'Tenant::"prod"', BundleCode.RULE_NEVER_FIRES, "", 'Tenant::"dev"'
    ),
    Mistake(
        "unknown workload", RULES, 'Workload::"agent"', 'Workload::"agents"', BundleCode.RULE_NEVER_FIRES, "", "'agent'"
    ),
    Mistake(
        "no such state", RULES, '"UpToDate"', '"UpToDated"', BundleCode.RULE_NEVER_FIRES, "UpToDated", "'UpToDate'"
    ),
    Mistake(
        "a state that is never accepted",
        RULES,
        '"UpToDate"',
        '"OutOfDate"',
        BundleCode.RULE_NEVER_FIRES,
        "OutOfDate",
        "tcb.accept",
    ),
    Mistake("no such standing", RULES, '"current"', '"grace"', BundleCode.RULE_NEVER_FIRES, '"grace"', "grace"),
    Mistake(
        "no measurement",
        RULES,
        'principal.tcb_status == "UpToDate"',
        'principal.mr_td == "abc"',
        BundleCode.RULE_NEVER_FIRES,
        "abc",
        "96",
    ),
    Mistake(
        "literal false", RULES, 'principal.tcb_status == "UpToDate"', "false", BundleCode.RULE_NEVER_FIRES, "false"
    ),
    Mistake(
        "both at once",
        RULES,
        'context.standing == "current"',
        'context.via == "kbs"',
        BundleCode.RULE_NEVER_FIRES,
        "kbs",
    ),
    Mistake(
        "never between",
        RULES,
        'context.standing == "current"',
        "context.age_s > 9 && context.age_s < 10",
        BundleCode.RULE_NEVER_FIRES,
        "age_s < 10",
    ),
    Mistake(
        "its own opposite",
        RULES,
        'context.standing == "current"',
        '!(context.via == "cloister")',
        BundleCode.RULE_NEVER_FIRES,
        "",
    ),
    Mistake(
        "always forbidden",
        RULES,
        'when { resource.labels.contains("production") }',
        "",
        BundleCode.RULE_NEVER_FIRES,
        "",
    ),
    Mistake(
        "everybody always",
        RULES,
        '(principal in Workload::"agent", action == Action::"Admit", resource == Tenant::"dev")\n'
        'when { context.via == "cloister" }',
        '(principal, action == Action::"Admit", resource)',
        BundleCode.RULE_UNCONDITIONAL,
        "",
        "Workload",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_refused_with_line_and_suggestion(mistake: Mistake) -> None:
    made = files()
    text = made[mistake.file].decode()
    assert mistake.old in text
    made[mistake.file] = text.replace(mistake.old, mistake.new, 1).encode()
    found = [item for item in mistakes(made) if item.file == mistake.file and item.code == mistake.code]
    assert found, mistakes(made)
    lines = made[mistake.file].decode().splitlines()
    assert any(mistake.at in lines[item.line - 1] for item in found), [(item.line, str(item)) for item in found]
    assert any(mistake.hint in item.hint for item in found), [item.hint for item in found]


def test_every_mistake_is_told_at_once_in_order() -> None:
    made = files("dev", bundle=("max_age_s", "max_age"), rules=("principal.tcb_status", "principal.tcbstatus"))
    made[VALUES] = made[VALUES].replace(b"source", b"sauce")
    found = mistakes(made)
    assert {item.file for item in found} == {MAIN, VALUES, RULES}
    assert [(item.file, item.line) for item in found] == sorted((item.file, item.line) for item in found)


def test_a_rule_that_does_not_end_is_named() -> None:
    made = files()
    made[RULES] = made[RULES].rstrip().removesuffix(b";")
    assert [(item.code, item.hint) for item in mistakes(made)] == [
        (BundleCode.SYNTAX, "every rule ends with a semicolon")
    ]


@pytest.mark.parametrize("name", [MAIN, VALUES, RULES, "schema.cedarschema"])
def test_a_missing_file_is_one_mistake(name: str) -> None:
    made = {key: content for key, content in files().items() if key != name}
    found = [item for item in mistakes(made) if item.code == BundleCode.MISSING_FILE]
    assert [item.file for item in found] == [name]


def test_a_file_that_does_not_belong_is_refused() -> None:
    found = mistakes({**files(), "bundel.toml": b""})
    assert [(item.code, item.hint) for item in found] == [(BundleCode.UNKNOWN_FILE, "did you mean 'bundle.toml'?")]


def test_another_schema_is_refused_and_other_comments_are_not() -> None:
    schema = files()["schema.cedarschema"]
    other = mistakes({**files(), "schema.cedarschema": schema.replace(b"simulated: Bool", b"simulated: String")})
    assert [item.code for item in other] == [BundleCode.SCHEMA]
    assert mistakes({**files(), "schema.cedarschema": b"// mine\n" + schema}) == ()


def test_a_directory_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as error:
        load_bundle(tmp_path / "none")
    assert error.value.code == BundleCode.MISSING_FILE


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    write(files(), tmp_path / "b")
    (tmp_path / "b" / "big.cedar").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BundleError) as error:
        load_bundle(tmp_path / "b")
    assert error.value.code == BundleCode.TOO_LARGE


def test_a_bundle_on_disk_is_the_same_as_in_memory(tmp_path: Path) -> None:
    write(files(), tmp_path / "b")
    (tmp_path / "b" / ".git").mkdir()
    (tmp_path / "b" / ".git" / "HEAD").write_text("x")
    assert load_bundle(tmp_path / "b").digest == bundle().digest
    assert read_files(tmp_path / "b") == files()


def test_every_byte_of_every_file_and_name_is_in_the_digest() -> None:
    made = files()
    seen = {digest_of(made)}
    for name, content in made.items():
        seen.add(digest_of({**made, name: content + b" "}))
        seen.add(digest_of({key: value for key, value in made.items() if key != name}))
        seen.add(digest_of({key if key != name else f"{key}x": value for key, value in made.items()}))
    assert len(seen) == 1 + 3 * len(made)
    assert digest_of({**made, FILE: b"anything"}) == digest_of(made)


def test_what_has_ended_is_refused_by_check_and_not_by_loading() -> None:
    made = files("dev", bundle=('"2027-12-31"', '"2026-11-30"'))
    assert mistakes(made) == ()
    found = mistakes(made, at=AT)
    assert [(item.code, item.file) for item in found] == [(BundleCode.ENDED, MAIN)]
    assert made[MAIN].decode().splitlines()[found[0].line - 1].startswith("platforms_until")


# Versions and signatures


def test_an_older_bundle_is_refused() -> None:
    assert [item.code for item in mistakes(files(), newest_version=2)] == [BundleCode.OLDER]
    assert mistakes(files(), newest_version=1) == ()


def test_other_content_under_the_same_version_is_refused() -> None:
    same = {"newest_version": 1, "newest_digest": bundle().digest}
    assert mistakes(files(), **same) == ()
    changed = files("dev", bundle=("max_age_s = 600", "max_age_s = 601"))
    assert [item.code for item in mistakes(changed, **same)] == [BundleCode.SAME_VERSION]


KEYS: list[PrivateKey] = [
    Ed25519PrivateKey.generate(),
    Ed25519PrivateKey.generate(),
    ec.generate_private_key(ec.SECP256R1()),
]


def signed(*keys: PrivateKey, made: Files | None = None) -> Files:
    content = dict(made or files())
    digest = digest_of(content)
    signatures = [(key_id(key.public_key()), sign(key, digest)) for key in keys]
    return {**content, FILE: render(signatures).encode()}


def signers(threshold: int = 2) -> Signers:
    return Signers(tuple(key.public_key() for key in KEYS), threshold)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
def test_k_of_n_keys_of_both_kinds_are_enough(pair: tuple[int, int]) -> None:
    loaded = bundle_of(signed(*(KEYS[index] for index in pair)), signers=signers())
    assert set(loaded.signed_by) == {key_id(KEYS[index].public_key()) for index in pair}


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(files, id="unsigned"),
        pytest.param(lambda: signed(KEYS[0]), id="one of two"),
        pytest.param(lambda: signed(KEYS[0], Ed25519PrivateKey.generate()), id="one is a stranger"),
    ],
)
def test_too_few_signatures_are_refused(made: Callable[[], Files]) -> None:
    assert [item.code for item in mistakes(made(), signers=signers())] == [BundleCode.UNSIGNED]


def test_an_edit_after_signing_is_refused() -> None:
    made = signed(KEYS[0], KEYS[1])
    made[MAIN] += b"\n"
    found = {item.code for item in mistakes(made, signers=signers())}
    assert found == {BundleCode.SIGNATURE, BundleCode.UNSIGNED}


def test_one_signature_does_not_count_twice() -> None:
    made = signed(KEYS[0])
    body = made[FILE].decode()
    made[FILE] = (body + body[body.index("[[signature]]") :]).encode()
    assert BundleCode.DUPLICATE in {item.code for item in mistakes(made, signers=signers())}


def test_a_signature_serves_no_other_purpose() -> None:
    key = KEYS[0]
    assert isinstance(key, Ed25519PrivateKey)
    digest = digest_of(files())
    bare = render([(key_id(key.public_key()), key.sign(digest))]).encode()
    assert BundleCode.SIGNATURE in {item.code for item in mistakes({**files(), FILE: bare}, signers=signers(1))}


def test_a_threshold_that_cannot_be_is_refused() -> None:
    key = KEYS[0].public_key()
    for keys, threshold in (((key,), 2), ((key, key), 2), ((key,), 0), ((), 1)):
        with pytest.raises(ValueError, match="threshold"):
            Signers(keys, threshold)


# Lines, and anything at all


def test_the_line_of_each_key_is_found_through_strings_brackets_and_comments() -> None:
    text = '''a = """
b = 1
"""
# c = 2
"d" = [
  "x = 1",  # y = 2
]
e.f = 3
[g.h]
i = "[j]"
[[k]]
l = 1
[[k]]
l = \'\'\'
m = 1\'\'\'
[k.n]
o = { p = 1 }
'''
    assert line_map(text) == {
        ("a",): 1,
        ("d",): 5,
        ("e", "f"): 8,
        ("g", "h"): 9,
        ("g", "h", "i"): 10,
        ("k", 0): 11,
        ("k", 0, "l"): 12,
        ("k", 1): 13,
        ("k", 1, "l"): 14,
        ("k", 1, "n"): 16,
        ("k", 1, "n", "o"): 17,
    }


@given(
    st.sampled_from([MAIN, VALUES, RULES, "tests/starter.toml", "schema.cedarschema", FILE]), st.binary(max_size=300)
)
def test_any_bytes_load_or_are_refused_with_a_code(name: str, content: bytes) -> None:
    for item in mistakes({**files(), name: content}):
        assert item.code in BundleCode


@given(data=st.data())
def test_any_small_damage_loads_or_is_refused_with_a_code(data: st.DataObject) -> None:
    made = files()
    name = data.draw(st.sampled_from([MAIN, VALUES, RULES]))
    text = made[name].decode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    patch = data.draw(st.text(alphabet="\"'[]{}()=;&|@#/\n ax0\\", max_size=6))
    found: Bundle | BundleError
    try:
        found = bundle_of({**made, name: (text[:start] + patch + text[end:]).encode()})
    except BundleError as error:
        found = error
    assert isinstance(found, Bundle | BundleError)


def test_every_code_says_what_happened_and_what_to_do() -> None:
    assert set(MEANING) == {*PolicyCode, *BundleCode, *DecisionCode}
    assert all(happened and do for happened, do in MEANING.values())


def test_dates_of_every_kind_are_read() -> None:
    for written in ('"2027-12-31"', "2027-12-31", '"2027-12-31T00:00:00Z"', "2027-12-31T01:00:00+01:00"):
        loaded = bundle_of(files("dev", bundle=('"2027-12-31"', written)))
        assert loaded.ends()[0][0] == datetime(2027, 12, 31, tzinfo=UTC)


def test_a_starter_of_an_unknown_kind_names_the_kinds() -> None:
    with pytest.raises(BundleError) as error:
        starter("prod")
    assert "tenant" in error.value.hint
