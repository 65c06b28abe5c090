"""The shape of the sources: who may import whom, what is pure, how long a file may be.

Read with `ast`, so nothing is executed and a lazy import counts like any other. A new file is added to ORDER, below
everything that it imports. An exception to a rule is one line in a table here, with its reason.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("attestation", "policies", "enclave", "broker", "simulator")

# Each folder's files, in reading order: a file imports only files to its left. A folder stands for its contents.
ORDER: dict[str, str] = {
    "attestation": (
        "provided names errors binary quote encoding eventlog es256 evidence guest records tcb checks der pem "
        "certificates pki pck collateral documents validity chains endorsements quoting appraisal arguments recent "
        "verifier ear transparency tokens verdict_claims verdict_facts verdict_agreement verdict sealing ports "
        "measure inspect net terminal inspect_cli measure_cli verify_cli decision_cli cli __init__"
    ),
    "attestation/net": "__init__ connections transport answers store pcs",
    "policies": (
        "__init__ model codes errors tables mailrules toolpins reference settings requirements appraisal cedartext "
        "vocabulary rules store authorisation baseline never readsettings signing bundle explain permit engine "
        "decision decided recording replay forecast faults cases cose corim diff keys scaffold text cli"
    ),
    "enclave": (
        "errors telling clock keys trustfile tdx replay retired messages domain packages launch session release "
        "kept standing mailbox blobs padding passage channel lanes openings ledger keeping checkpoint detour "
        "staying stream client svid durable fetching topics connection company received peers runtime direct "
        "workload_messages workload declared replies tools calling context main handling subscribing hooks guards "
        "serving toolbox life agent supervise labs reload cli __init__"
    ),
    "enclave/topics": "__init__ following reader writer",
    "broker": (
        "__init__ wire ports errors points deadlines abreast tree archive audit bundles generation rootkey keyring "
        "authority identity challenges dpop collateral platforms tracing pool judging attested reasons status sessions "
        "clock rights limits config foundation retired admission vault svids second leasing mail standing release "
        "retirement derivation kbs tls decisions auditing store verification tokens rotation witness sealed domains "
        "administration telemetry sources upkeep desks readiness service background calls rest rpc app opening "
        "commands cli"
    ),
    "broker/ports": "channels mail svids topics releases __init__",
    "broker/mail": (
        "__init__ sparing edges labels mailkeys states acceptance forged bell deadletters leases vouchers mailboxes "
        "routing ways topics channels drawing blobs desks"
    ),
    "broker/store": (
        "__init__ rows undo turns shares memory_blobs memory_channels memory_stones memory_mail memory_svids "
        "memory_topics memory_releases memory sql_releases sql_schema sql_blobs sql_channels sql_parcel sql_stones "
        "sql_mail sql_svids sql_topics sql_tables fence sql"
    ),
    "broker/rest": (
        "__init__ refusals connections front http_api sealed_http kbs_http openapi console routes_audit routes_keys "
        "routes_relying routes_mail routes_svids routes_opening routes_secrets routes"
    ),
    "broker/commands": (
        "__init__ admin_client unsealing setup rewrap hardening cli_parts lending_cli audit_cli domain_cli root_cli"
    ),
    "broker/wire": (
        "__init__ heap errors canonical tags jose fields names tools log evidence challenge attested svid dpop unseal "
        "terms release derive labels api_pb2 envelope_pb2 envelope blob leases deadletters channel_pb2 channel "
        "stream_pb2 mailbox keys state peers revocations topic bodies relying trustfile"
    ),
    "broker/kbs": "__init__ jwe messages keys token records guests resources desk",
    "broker/rootkey": "__init__ root keyfile shares holders tpm methods",
    "broker/rpc": "__init__ doors members unary settling following stream server",
    "simulator": (
        "__init__ errors seed clock sgx_extension pki tdreport quoting platform catalogue recovery collateral ccel "
        "domain source store machine exhibit scene registry faults_quote faults_chain faults_collateral faults_tcb "
        "faults_evidence faults judging vectors pcs_server guest strategies residence lablog ending lab demo cli "
        "broker_fixture agent_fixture hostile pytest_plugin"
    ),
    "simulator/guest": (
        "__init__ keccak secp256k1 dstack_keys msgpack dstack dstack_http mounts tsm fusefs init qgs sandbox cli"
    ),
    "simulator/demo": "agents narrator policy process vectors operator story __init__",
}

# Imports against that order, each lazy.
UPWARDS: dict[tuple[str, str], str] = {
    ("simulator.machine", "simulator.domain"): "Machine.launch() is the door by which everybody launches a domain",
}

# What each part may import of ours. The longest matching prefix decides; a part may always import itself.
ARROWS: dict[str, tuple[str, ...]] = {
    "attestation": (),
    "attestation.verify_cli": ("policies",),  # `verify --bundle`, lazily: see LAZY
    "attestation.decision_cli": ("policies",),  # `verify --bundle-file`, lazily: see LAZY
    "policies": ("attestation",),
    "enclave": ("attestation", "policies", "broker.wire"),
    "broker.wire": ("attestation",),
    "broker": ("attestation", "policies"),
    "simulator": ("attestation",),
    "simulator.demo": ("attestation", "policies", "enclave", "broker"),
    "simulator.lab": ("attestation", "policies", "enclave", "broker"),
    "simulator.residence": ("attestation", "broker.wire"),  # reference values in the form of trust files
    "simulator.broker_fixture": ("attestation", "policies", "enclave", "broker"),
    "simulator.agent_fixture": ("attestation", "policies", "enclave", "broker"),
    "simulator.hostile": ("attestation", "policies", "enclave", "broker"),
    "simulator.pytest_plugin": ("attestation", "policies", "enclave", "broker"),
    "cloister": ("attestation", "policies", "enclave", "broker"),
}

# May be imported by the named file only inside a function.
LAZY: dict[tuple[str, str], str] = {
    ("attestation.verify_cli", "attestation.net"): "`verify` without --collateral asks a PCS",
    ("attestation.verify_cli", "policies"): "`verify --bundle`",
    ("attestation.decision_cli", "policies"): "`verify --bundle-file`",
}

# Third parties, by the top-level name that is imported; again the longest prefix decides.
THIRD_PARTIES: dict[str, str] = {
    "attestation": "cryptography",
    "attestation.tokens": "cryptography jwt",
    "policies": "cryptography cedarpy",
    "policies.cli": "cryptography cedarpy typer",
    "policies.corim": "cryptography cbor2",
    "policies.cose": "cryptography cbor2",
    "enclave": "cryptography grpc google httpx2",
    "enclave.cli": "cryptography grpc google httpx2 typer",
    "broker.wire": "cryptography grpc google",
    "broker.tracing": "opentelemetry",
    "broker": (
        "cryptography cedarpy fastapi starlette uvicorn uvloop pydantic orjson grpc google prometheus_client typer"
    ),
    "broker.rootkey.tpm": "cryptography tpm2_pytss",
    "simulator": "cryptography typer",
    "simulator.guest": "cryptography mfusepy typer",
    "simulator.demo": "cryptography typer httpx2 uvicorn",
    "simulator.lab": "cryptography typer httpx2 uvicorn uvloop",
    "simulator.pytest_plugin": "cryptography pytest httpx2",
    "simulator.strategies": "cryptography hypothesis",
    "cloister": "typer",
}

# Pure: the same arguments, the same answer. The command lines and the PCS client are the rim.
PURE = ("attestation", "policies", "broker.wire")
NOT_PURE = (
    "attestation.cli",
    "attestation.decision_cli",
    "attestation.inspect_cli",
    "attestation.measure_cli",
    "attestation.net",
    "attestation.terminal",
    "attestation.verify_cli",
    "policies.cli",
)
IMPURE_MODULES = frozenset(
    "asyncio ftplib http logging multiprocessing os random secrets select selectors shutil signal smtplib socket "
    "sqlite3 ssl subprocess tempfile time urllib uuid".split()
)
CLOCKS = frozenset({"now", "utcnow", "today"})
IMPURE_ALLOWED: dict[tuple[str, str], str] = {
    ("policies.corim", "uuid"): "tells an id from other values; none is made",
    ("attestation.sealing", "os"): "os.urandom makes a new key; the environment is not read",
    ("broker.wire.dpop", "secrets"): "a proof's jti must be new each time, and nothing is decided by it",
}

# More than 450 lines, and why that is one argument and not two.
LONG_FILES: dict[str, str] = {
    "enclave/errors.py": "a table: every code with what happened and what to do",
    "attestation/errors.py": "a table: every code with what happened and what to do",
    "broker/errors.py": "a table: every code with what happened and what to do",
}
# More than 55 lines, likewise.
LONG_FUNCTIONS: dict[str, str] = {}
MAX_TEST_LINES = 600
# What a folder holds side by side; more than this many files want a folder of their own among them.
MAX_FILES_IN_FOLDER = 60

TOP_LEVEL = frozenset(
    ".ci .gitignore CHANGELOG.md CONTRIBUTING.md LICENSE LIMITATIONS.md Makefile NOTICE README.md SECURITY.md "
    "attestation benchmarks broker cloister.py docs enclave examples policies pyproject.toml requirements simulator "
    "tests".split()
)

SECRET_NAME = re.compile(
    r"(^|_)(private|plaintext|passphrase|password|secret|seed|token|root_key|data_key)(_key|_bytes|s)?$"
)
SECRET_TYPE = re.compile(r"\b(bytes|bytearray|str|\w*PrivateKey)\b")
SECRET_REPR_ALLOWED: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, dotted and absolute; `lazy` inside a function, `typing` where only type checkers go."""

    name: str
    line: int
    lazy: bool
    typing: bool


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the project, parsed."""

    path: str
    module: str
    text: str
    tree: ast.Module

    def imports(self) -> Iterator[Import]:
        yield from _imports(self.tree)


def _imports(node: ast.AST, *, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            base = child.module or ""
            yield from (Import(_resolve(base, alias.name), child.lineno, lazy, typing) for alias in child.names)
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _imports(child, lazy=inside, typing=typing or _is_for_typing(child))


def _is_for_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _resolve(base: str, name: str) -> str:
    """`from package import module` names a module where there is one, else something inside `base`."""
    path = ROOT.joinpath(*base.split("."))
    return f"{base}.{name}" if (path / name).is_dir() or (path / f"{name}.py").is_file() else base


@cache
def sources() -> tuple[Source, ...]:
    paths = [ROOT / "cloister.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]
    return tuple(_parse(path) for path in paths if path.is_file() and "_pb2" not in path.name)


def _parse(path: Path) -> Source:
    relative = path.relative_to(ROOT)
    parts = relative.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    return Source(path=relative.as_posix(), module=module, text=text, tree=ast.parse(text, str(relative)))


def _inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _nearest(table: Mapping[str, object], module: str) -> str:
    return max((key for key in table if _inside(module, key)), key=len)


def _ours(name: str) -> bool:
    return name.split(".")[0] in {*PACKAGES, "cloister"}


def _pure(module: str) -> bool:
    return any(_inside(module, p) for p in PURE) and not any(_inside(module, p) for p in NOT_PURE)


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for source in sources():
        prefix = _nearest(ARROWS, source.module)
        home = prefix if "." not in prefix or prefix == "broker.wire" else prefix.split(".")[0]
        wrong += [
            f"{source.path}:{found.line} imports {found.name}"
            for found in source.imports()
            if _ours(found.name) and not any(_inside(found.name, one) for one in (home, *ARROWS[prefix]))
        ]
    assert wrong == []


def test_nothing_outside_the_simulator_imports_it() -> None:
    wrong = [
        f"{source.path}:{found.line}"
        for source in sources()
        for found in source.imports()
        if _inside(found.name, "simulator") and not _inside(source.module, "simulator")
    ]
    assert wrong == []


def test_third_parties_are_the_declared_ones() -> None:
    wrong = []
    for source in sources():
        allowed = set(THIRD_PARTIES[_nearest(THIRD_PARTIES, source.module)].split())
        for found in source.imports():
            top = found.name.split(".")[0]
            if top and not _ours(top) and top not in sys.stdlib_module_names and top not in allowed:
                wrong.append(f"{source.path}:{found.line} imports {top}")
    assert wrong == []


def test_the_network_corner_and_policies_are_reached_by_the_command_line_alone_and_lazily() -> None:
    wrong = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in sources()
        if _inside(source.module, "attestation") and not _inside(source.module, "attestation.net")
        for found in source.imports()
        if _ours(found.name) and (_inside(found.name, "attestation.net") or not _inside(found.name, "attestation"))
        if not (found.lazy and any(source.module == by and _inside(found.name, what) for by, what in LAZY))
    ]
    assert wrong == []


def test_pure_parts_import_nothing_impure() -> None:
    wrong = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in sources()
        if _pure(source.module)
        for found in source.imports()
        if found.name.split(".")[0] in IMPURE_MODULES and (source.module, found.name) not in IMPURE_ALLOWED
    ]
    assert wrong == []


def test_pure_parts_ask_no_clock() -> None:
    wrong = [
        f"{source.path}:{node.lineno} calls {ast.unparse(node.func)}"
        for source in sources()
        if _pure(source.module)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", sorted(ORDER))
def test_a_file_imports_only_files_above_it_in_its_folder(folder: str) -> None:
    order = ORDER[folder].split()
    package = folder.replace("/", ".")
    wrong = []
    for source in sources():
        if not _inside(source.module, package):
            continue
        name = _child(source.module, package)
        assert name in order, f"{source.path}: add {name} to ORDER[{folder!r}], below everything that it imports"
        for found in source.imports():
            if _inside(found.name, package) and found.name != package and not found.typing:
                other = _child(found.name, package)
                later = other not in order or order.index(other) > order.index(name)
                if other != name and later and (source.module, found.name) not in UPWARDS:
                    wrong.append(f"{source.path}:{found.line} imports {found.name}, which comes later")
    assert wrong == []


def _child(module: str, package: str) -> str:
    """The file or folder right inside `package` that `module` is, or is in."""
    return "__init__" if module == package else module.removeprefix(package + ".").split(".")[0]


def test_every_declared_file_exists() -> None:
    missing = [
        f"{folder}/{name}"
        for folder, names in ORDER.items()
        for name in names.split()
        if not (ROOT / folder / f"{name}.py").is_file() and not (ROOT / folder / name).is_dir()
    ]
    assert missing == []


def test_top_level_names_are_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("needs a git checkout: this copy has no list of its own files")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


def test_every_file_says_what_it_decides() -> None:
    assert [s.path for s in sources() if s.text.strip() and not ast.get_docstring(s.tree)] == []


def test_files_are_short_enough_to_read() -> None:
    long = {s.path for s in sources() if s.text.count("\n") > 450}
    assert long - set(LONG_FILES) == set(), "split it, or add it to LONG_FILES with a reason"
    assert set(LONG_FILES) - long == set(), "no longer long: take it out of LONG_FILES"


def test_test_files_are_short_enough_to_read() -> None:
    """One subject each; what several of them build upon stands in a file of its own, without a `test_` before it."""
    files = (ROOT / "tests").glob("*.py")
    assert [path.name for path in files if path.read_text(encoding="utf-8").count("\n") > MAX_TEST_LINES] == []


def test_tests_are_short_enough_to_read() -> None:
    wrong = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 55
    ]
    assert wrong == [], "split it: a test has one reason to fail"


def test_folders_are_small_enough_to_survey() -> None:
    held = Counter(source.path.rpartition("/")[0] for source in sources())
    assert {folder: number for folder, number in held.items() if number > MAX_FILES_IN_FOLDER} == {}


def test_every_ignored_complaint_has_its_reason() -> None:
    """`# noqa: CODE` and `# type: ignore[code]` are followed by why: whoever comes later can tell whether it holds."""
    bare = re.compile(r"#\s*(?:noqa|type:\s*ignore)\b(?!(?::\s*[A-Z]+[0-9]+|\[[a-z-]+\])\s+(?:#\s+|-\s+)?\w)")
    wrong = [
        f"{source.path}:{number}"
        for source in sources()
        for number, line in enumerate(source.text.splitlines(), 1)
        if bare.search(line)
    ]
    assert wrong == []


def test_functions_are_short_enough_to_read() -> None:
    long = {
        f"{s.path}:{node.name}"
        for s in sources()
        for node in ast.walk(s.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 55
    }
    assert long - set(LONG_FUNCTIONS) == set(), "split it, or add it to LONG_FUNCTIONS with a reason"
    assert set(LONG_FUNCTIONS) - long == set(), "no longer long: take it out of LONG_FUNCTIONS"


def test_secrets_have_no_repr() -> None:
    """A dataclass field whose name says that it is a secret is kept out of the generated repr."""
    wrong = [
        place
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and _has_generated_repr(node)
        for place in _secret_fields(source, node)
        if place not in SECRET_REPR_ALLOWED
    ]
    assert wrong == []


def _has_generated_repr(node: ast.ClassDef) -> bool:
    calls = [ast.unparse(decorator) for decorator in node.decorator_list]
    makes_one = any(
        call.startswith(("dataclass", "dataclasses.dataclass")) and "repr=False" not in call for call in calls
    )
    named_tuple = any(ast.unparse(base).endswith("NamedTuple") for base in node.bases)
    own = any(isinstance(child, ast.FunctionDef) and child.name == "__repr__" for child in node.body)
    return (makes_one or named_tuple) and not own


def _secret_fields(source: Source, node: ast.ClassDef) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            hidden = child.value is not None and "repr=False" in ast.unparse(child.value)
            secret = SECRET_NAME.search(child.target.id) and SECRET_TYPE.search(ast.unparse(child.annotation))
            if secret and not hidden:
                yield f"{source.path}:{node.name}.{child.target.id}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("attestation", "fastapi typer grpc jwt pydantic cedarpy httpx2 asyncio sqlite3"),
        ("policies", "fastapi typer grpc pydantic httpx2 asyncio sqlite3"),
        ("enclave", "fastapi uvicorn pydantic sqlite3"),
        ("cloister", "fastapi grpc jwt pydantic cedarpy httpx2 asyncio sqlite3 broker enclave simulator"),
    ],
)
def test_importing_it_is_light(module: str, heavy: str) -> None:
    code = f"import {module}, sys; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
