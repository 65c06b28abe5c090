"""What the documents say is true: examples run, links and names lead somewhere, tables are current."""

import ast
import re
import tomllib
from enum import StrEnum
from importlib import import_module
from pathlib import Path

import pytest

import cloister
from attestation import Code, VerificationFailed
from docs import generate

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def example(name: str) -> str:
    """The Python block of the README under the mark `<!-- example: name -->`."""
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no example {name}"
    return found[1]


def statements(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


def test_the_error_page_is_current() -> None:
    assert generate.PAGE.read_text("utf-8") == generate.render(), "run: make docs"


def test_every_table_of_codes_is_on_the_error_page() -> None:
    tables = set()
    for package in ("attestation", "policies", "enclave", "broker", "simulator"):
        for path in (ROOT / package).rglob("*.py"):
            if re.search(r"^MEANING\b", path.read_text("utf-8"), re.MULTILINE):
                tables.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert tables == set(generate.PARTS)


@pytest.mark.parametrize("module", generate.PARTS)
def test_every_code_says_what_happened_and_what_to_do(module: str) -> None:
    loaded = import_module(module)
    codes = {
        code
        for kind in vars(loaded).values()
        if isinstance(kind, type)
        and issubclass(kind, StrEnum)
        and kind.__module__ == module
        and "Code" in kind.__name__
        for code in kind
    }
    assert codes == set(loaded.MEANING)
    assert all(what.endswith((".", "?")) and remedy.endswith((".", "`")) for what, remedy in loaded.MEANING.values())


@PAGE
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text("utf-8")))
    assert listed == {page.name for page in folder.glob("0*.md")}


@PAGE
def test_tests_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", page.read_text("utf-8"))
    assert [f"{file}.{test}" for file, test in named if test not in functions(ROOT / "tests" / f"{file}.py")] == []


def test_every_threat_names_a_test_or_says_that_there_is_none() -> None:
    rows = re.findall(r"^\| (T\d+) \|(.*)\|$", (ROOT / "docs" / "threat-model.md").read_text("utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == [f"T{number}" for number in range(1, len(rows) + 1)]
    for name, row in rows:
        answer, _, shown = row.rpartition(" | ")
        excused = "*not yet*" in answer or "*by choice*" in shown
        assert excused != bool(re.search(r"`test_\w+\.test_\w+`", shown)), f"{name}: name a test, or say *not yet*"


def functions(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@PAGE
def test_commands_and_targets_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    spans = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^    (\S.*)$", text, re.MULTILINE)]
    commands = {found[1] for span in spans if (found := re.match(r"cloister ([a-z]+)\b", span))}
    assert commands - {*cloister.COMMANDS, *cloister.SIMULATED} == set()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    wanted = {found[1] for span in spans if (found := re.match(r"make ([a-z]+)\b", span))}
    assert wanted - targets == set()


@PAGE
def test_pages_name_no_machine(page: Path) -> None:
    assert re.findall(r"/root/|/home/|/work/|/tmp/|pypi\.|files\.pythonhosted", page.read_text("utf-8")) == []


def test_the_extras_that_are_named_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(re.findall(r'install "\.\[(\w+)\]"', README)) <= set(project["optional-dependencies"])


def test_the_verification_example_has_three_statements_and_runs() -> None:
    from simulator.machine import Machine

    source = example("verify")
    assert len(ast.parse(source).body) - 1 == 3  # and one import
    machine = Machine.create(seed="readme")
    domain, expected = machine.launch("agent"), bytes(range(64))
    text = machine.collateral("tdx", domain.platform.fmspc.hex().upper()).to_json()
    root = machine.roots
    names = {"raw": domain.quote(expected), "text": text, "expected": expected, "now": machine.clock.now()}
    with pytest.raises(VerificationFailed) as refused:
        exec(source, dict(names))
    assert refused.value.code is Code.CHAIN_ROOT
    exec(source.replace("TrustRoots.intel()", "root"), dict(names, root=root))


def test_the_agent_example_is_short_and_defines_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    from enclave import Agent

    started: list[Agent] = []
    monkeypatch.setattr(Agent, "run", lambda agent: started.append(agent))
    source = example("agent")
    assert statements(source) <= 15
    assert (ROOT / "examples" / "hello.py").read_text("utf-8").endswith(f'"""\n\n{source}')
    exec(compile(source, "hello.py", "exec"), {"__name__": "__main__"})
    assert [agent.name for agent in started] == ["hello"]
