"""The command line as somebody meets it for the first time: lists of commands, mistakes that everybody makes once."""

import json
import socket
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

import cloister
from broker import cli
from broker.app import listen
from broker.commands.admin_client import REMEDIES, AdminError
from broker.commands.cli_parts import answering, refuse_to_start
from broker.errors import BrokerCode
from broker.wire.bodies import Problem
from policies.codes import BundleCode
from policies.errors import BundleError

APPS = {
    name: reference
    for name, (reference, _, _) in cloister.COMMANDS.items()
    if isinstance(getattr(import_module(reference.partition(":")[0]), reference.partition(":")[2]), typer.Typer)
}
runner = CliRunner()


def app(name: str) -> typer.Typer:
    module, _, attribute = APPS[name].partition(":")
    found: typer.Typer = getattr(import_module(module), attribute)
    return found


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in APPS:
        group = typer.main.get_command(app(name))
        for each, command in getattr(group, "commands", {}).items():
            yield f"{name} {each}", command


@pytest.mark.parametrize("name", sorted(APPS))
def test_a_list_of_commands_breaks_off_no_sentence(name: str) -> None:
    told = runner.invoke(app(name), ["--help"], terminal_width=80)
    assert told.exit_code == 0
    assert [line for line in told.output.splitlines() if line.endswith("...") and "[ARGS]..." not in line] == []


def test_every_option_of_every_command_is_explained() -> None:
    silent = [
        f"{name} {option.name}"
        for name, command in commands()
        for option in command.params
        if option.param_type_name == "option" and not getattr(option, "help", None)
    ]
    assert silent == []


def test_every_command_that_prints_knows_json() -> None:
    without = {name for name, command in commands() if not any("--json" in option.opts for option in command.params)}
    assert without == {"broker reference"}  # which prints JSON in any case


def test_a_folder_that_is_set_up_says_what_comes_next_and_one_that_is_none_ends_with_two(tmp_path: Path) -> None:
    made = runner.invoke(cli.broker, ["init", str(tmp_path / "b")])
    assert made.exit_code == 0
    assert "cloister broker serve" in made.stderr
    again = runner.invoke(cli.broker, ["init", str(tmp_path / "b")])
    assert (again.exit_code, BrokerCode.CONFIG_INVALID in again.stderr) == (2, True)
    told = runner.invoke(cli.broker, ["init", str(tmp_path / "c"), "--json"])
    assert (json.loads(told.stdout)["folder"], told.stderr) == (str(tmp_path / "c"), "")


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)


def test_all_that_is_wrong_with_a_policy_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    first = BundleError(BundleCode.SYNTAX, "a.cedar", 1, "x")
    first.others = (BundleError(BundleCode.SYNTAX, "b.cedar", 2, "y"),)
    with pytest.raises(typer.Exit) as ended:
        refuse_to_start(first)
    assert ended.value.exit_code == 2
    told = capsys.readouterr().err
    assert "a.cedar:1" in told
    assert "b.cedar:2" in told


@pytest.mark.parametrize(
    ("problem", "wanted"),
    [
        ({"detail": "policy.cedar:3: bundle.syntax: x\npolicy.cedar:9: bundle.syntax: y"}, ["policy.cedar:9"]),
        ({"codes": ("policy.a", "policy.b")}, ["policy.a, policy.b"]),
        ({"code": "dpop.url_mismatch"}, [REMEDIES["dpop.url_mismatch"]]),
        ({"correlation_id": "c0ffee"}, ["c0ffee"]),
    ],
)
def test_a_refusal_by_the_broker_is_told_with_all_that_it_says(
    problem: dict[str, Any], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    members: dict[str, Any] = {"status": 400, "code": "config.invalid", "title": "no", "correlation_id": ""}
    told = Problem(**members | problem)
    with pytest.raises(typer.Exit) as ended, answering(False):
        raise AdminError(told.code, told.title, status=1, problem=told)
    assert ended.value.exit_code == 1
    err = capsys.readouterr().err
    assert [text for text in wanted if text not in err] == []


@pytest.mark.parametrize(
    "line",
    [["nosuch"], ["run"], ["lab", "--nosuch"], ["sim"], ["verify"], ["policy", "nosuch"]],
)
def test_wrong_usage_ends_with_two_and_writes_nothing_to_stdout(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cloister.main(line) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "cloister" in told.err
