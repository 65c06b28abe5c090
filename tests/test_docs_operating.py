"""The commands of docs/operating.md run in their order; commands that any page shows have the options that it shows."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import attestation.errors
import broker.errors
import cloister
import enclave.errors
import policies.codes
from broker.app import listen
from broker.wire.errors import WireCode

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATING = (ROOT / "docs" / "operating.md").read_text("utf-8")
RUN = re.compile(r"<!-- run: (\w+) -->\n```console\n(.*?)```", re.DOTALL)
PATIENCE_S = 60


def lines(name: str) -> list[str]:
    found = [line for kind, block in RUN.findall(OPERATING) if kind == name for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in found)
    return [line.removeprefix("$ ") for line in found]


class Terminal:
    """Runs lines as a shell would; `cloister` itself in this process, but for the broker that serves."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self._serving: subprocess.Popen[str] | None = None
        monkeypatch.chdir(folder)
        self.said = ""

    def run(self, line: str) -> None:
        if line.startswith("export "):
            for pair in shlex.split(line)[1:]:
                self._monkeypatch.setenv(*pair.split("=", 1))
        elif "cloister broker serve" in line:
            self._serve(shlex.split(line))
        elif line.startswith("cloister ") and " | " not in line:
            command, _, target = line.partition(" > ")
            assert cloister.main(shlex.split(command)[1:]) == 0, line
            out = self._capsys.readouterr().out
            self.said += out
            if target:
                Path(target).write_text(out)
        else:
            program = f'cloister() {{ "{sys.executable}" -m cloister "$@"; }}\nset -e\n{line}'
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(["bash", "-c", program], check=True, env=env, stdout=subprocess.DEVNULL)

    def _serve(self, words: list[str]) -> None:
        self._serving = subprocess.Popen(
            [sys.executable, "-m", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._serving.stdout is not None
        assert self._serving.stdout.readline().startswith("serving ")

    def close(self) -> None:
        if self._serving is not None:
            self._serving.terminate()
            self._serving.communicate(timeout=PATIENCE_S)


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal(tmp_path, capsys, monkeypatch)
    yield made
    made.close()


def test_the_page_takes_a_broker_from_nothing_to_a_checked_log(terminal: Terminal) -> None:
    with listen("127.0.0.1", 0) as door, listen("127.0.0.1", 0) as other:
        port, grpc = door.getsockname()[1], other.getsockname()[1]
    for line in lines("broker"):
        terminal.run(line.replace("8443", str(port)).replace("--kind tenant", f"--kind tenant --port {port}"))
        if "broker init" in line:
            settings = Path("broker/broker.toml")
            settings.write_text(settings.read_text().replace(f"port = {port + 1}", f"port = {grpc}"))
    assert "acme/models/key  version 1" in terminal.said
    assert "cases pass" in terminal.said
    assert "verified" in terminal.said
    assert "one log" in terminal.said or Path("receipt.json").stat().st_size > 0


def test_shares_and_a_second_administrator_are_made_as_shown(terminal: Terminal) -> None:
    for line in lines("shares"):
        terminal.run(line)
    assert len(list(Path("sealed/shares").iterdir())) == 2
    assert Path("carol.pem").stat().st_mode & 0o777 == 0o600
    assert "[[admins]]" in terminal.said
    assert 'role = "auditor"' in terminal.said


def shown() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        blocks = re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL)
        spans = [line for block in blocks for line in block.splitlines()]
        spans += re.findall(r"`(cloister [^`\n]+)`", text) + re.findall(r"^    (cloister .*)$", text, re.MULTILINE)
        for span in spans:
            found = re.search(r"\bcloister ([a-z].*)", span.partition("   #")[0])
            if found:
                yield page.name, found[1]


def options(words: list[str]) -> set[str]:
    """Every option of the command that the words begin with."""
    reference = cloister.COMMANDS.get(words[0], ("",))[0]
    module, _, attribute = reference.partition(":")
    found: Any = getattr(import_module(module), attribute) if module else None
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_command(found)
        for word in words[1:]:
            command = getattr(command, "commands", {}).get(word, command)
        return {one for option in command.params for one in option.opts} | {"--help"}
    deeper = words[1:2] if words[1:2] and words[0] in ("sim", "quote") else []
    done = subprocess.run(
        [sys.executable, "-m", "cloister", words[0], *deeper, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return set(re.findall(r"--[a-z][a-z-]*", done.stdout))


def test_commands_that_pages_show_have_the_options_that_they_show() -> None:
    known: dict[tuple[str, ...], set[str]] = {}
    wrong = []
    for page, line in shown():
        try:
            words = shlex.split(line.partition(" | ")[0].partition(" > ")[0])
        except ValueError:  # a quotation that goes on in the next line: its options stand there too
            words = line.split()
        words = words[: words.index("--")] if "--" in words else words
        name = tuple(word for word in words[:2] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-"))
        used = {word.partition("=")[0].rstrip("`,;.)") for word in words if word.startswith("--")}
        if not used:
            continue
        if name not in known:
            known[name] = options(list(name))
        wrong += [f"{page}: cloister {line}: {option}" for option in used - known[name]]
    assert wrong == []


def test_codes_in_the_tables_of_what_people_see_exist() -> None:
    codes = {
        str(code)
        for kind in (
            attestation.errors.Code,
            broker.errors.BrokerCode,
            enclave.errors.Code,
            policies.codes.PolicyCode,
            policies.codes.BundleCode,
            WireCode,
        )
        for code in kind
    }
    for page in ("agents.md", "operating.md"):
        text = (ROOT / "docs" / page).read_text("utf-8")
        table = text[text.index("| you see | because |") :]
        named = re.findall(r"^\| `([a-z_]+\.[a-z_]+)`", table, re.MULTILINE)
        assert len(named) > 4
        assert [code for code in named if code not in codes] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=lambda page: page.name)
def test_every_page_is_in_the_list_of_pages(page: Path) -> None:
    if page.name != "README.md":
        assert f"({page.name})" in (ROOT / "docs" / "README.md").read_text("utf-8")
