"""`cloister secret releases`, `leases` and `end-lease`: who got what, and until when.

Decides options and output; the broker decides everything else.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from broker.commands.admin_client import USAGE, AdminError
from broker.commands.cli_parts import AsJson, KeyFile, Name, Url, answering, connect, show, time_text

Tenant = Annotated[str | None, typer.Option(help="This tenant's alone.")]
Lease = Annotated[int | None, typer.Option(help="Seconds for which a version is released again to one agent.")]
Draw = Annotated[bool, typer.Option("--draw", help="Draw a new value when a lease ends.")]
Meta = Annotated[list[str] | None, typer.Option(help="NAME=TEXT for people: owner, purpose. May be repeated.")]


def terms_body(lease: int | None, draw: bool, meta: list[str] | None) -> dict[str, Any]:
    """The member `terms` of a request; nothing when no option names any. Raises AdminError secret.meta."""
    if lease is None and not draw and not meta:
        return {}
    pairs = [item.partition("=") for item in meta or []]
    if any(not equals for _, equals, _ in pairs):
        raise AdminError("secret.meta", "write --meta NAME=TEXT", status=USAGE)
    return {"terms": {"lease_s": lease, "draw": draw, "meta": {name: text for name, _, text in pairs}}}


def releases(
    url: Url,
    key_file: KeyFile,
    secret: Annotated[str | None, typer.Option(help="tenant/path/name")] = None,
    subject: Annotated[str | None, typer.Option(help="agent/tenant/thumbprint")] = None,
    workload: Annotated[str | None, typer.Option(help="A workload of the policy.")] = None,
    measurement: Annotated[str | None, typer.Option(help="MRTD, an RTMR or a launch, in hex.")] = None,
    platform: Annotated[str | None, typer.Option(help="PPID, PIID or FMSPC, in hex.")] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Who got what. Which secret went to which agent, as what, and where that stands in the log."""
    with answering(as_json):
        asked = {"secret": secret, "subject": subject, "workload": workload, "tenant": tenant}
        asked |= {"measurement": measurement, "platform": platform}
        found = connect(url, key_file).pages("/v1/releases", "releases", "entry", **asked)
        show({"releases": found}, as_json, lambda: _release_lines(found))


def _release_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    for item in found:
        workloads = " ".join(item["workloads"]) or "-"
        yield (
            f"{item['entry']:>6}  {time_text(item['at_ms'] / 1000)}  {item['name']}  version {item['version']}  "
            f"{item['subject']}  {workloads}"
        )


def leases(url: Url, key_file: KeyFile, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Leases that have not ended."""
    with answering(as_json):
        found = connect(url, key_file).pages("/v1/leases", "leases", "name", tenant=tenant)
        show({"leases": found}, as_json, lambda: map(_lease_line, found))


def _lease_line(found: dict[str, Any]) -> str:
    ends = "ended" if found["closed"] else f"ends {time_text(found['ends_at_s'])}"
    return f"{found['name']}  version {found['version']}  {found['subject']}  {ends}"


def end_lease(
    name: Name,
    version: Annotated[int, typer.Argument(help="The version that was lent.")],
    subject: Annotated[str, typer.Argument(help="agent/tenant/thumbprint")],
    url: Url,
    key_file: KeyFile,
    as_json: AsJson = False,
) -> None:
    """End a lease now: no release again, and a rotation. What was given stays given."""
    with answering(as_json):
        body = {"name": name, "version": version, "subject": subject}
        found = connect(url, key_file).send("POST", "/v1/leases:end", body)
        show(found, as_json, lambda: iter([_lease_line(found)]))


def add(app: typer.Typer) -> None:
    """Hang these commands under `cloister secret`."""
    app.command("releases")(releases)
    app.command("leases")(leases)
    app.command("end-lease")(end_lease)
