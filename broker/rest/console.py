"""One page for whoever runs the broker: who is here, what was refused and why, where the log stands.

Decides how it looks. It stands alone (no script, nothing fetched), a strict Content-Security-Policy keeps it so, and
simulated agents are hatched and never green, so that nobody takes one for a real one. Everything shown is escaped.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from starlette.responses import HTMLResponse

from broker.audit import Kind
from broker.errors import BrokerCode, BrokerError
from broker.ports import AgentRecord, LogRow
from broker.service import Broker

MAX_ROWS: Final = 100
_REFUSED: Final = (Kind.AGENT_REFUSED, Kind.AGENT_QUARANTINED, Kind.SECRET_REFUSED, Kind.EDGE_REFUSED)
_STYLE: Final = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884}
td{vertical-align:top;overflow-wrap:anywhere}code{font-size:.9em}
.simulated{background:repeating-linear-gradient(45deg,#e8a80033 0 8px,#0000 8px 16px)}
.real .admitted{color:#1a7f37}.quarantined,.revoked{color:#cf222e}.note{opacity:.7}
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode("ascii")
HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def respond(broker: Broker) -> HTMLResponse:
    """The page. Raises BrokerError route.unknown where the settings switch it off."""
    if not broker.settings.shows_console:
        raise BrokerError(BrokerCode.ROUTE_UNKNOWN, "the console is switched off")
    return HTMLResponse(render(broker), headers=HEADERS)


def render(broker: Broker) -> str:
    overview = broker.administration.overview()
    head = broker.audit.head()
    agents = broker.administration.agents(tenant=None, after="", limit=MAX_ROWS)
    facts = [
        ("Broker", broker.settings.public_url),
        ("Broker id", broker.identity.broker_id.hex()),
        ("Profile", broker.settings.profile),
        ("Generation", str(overview["generation"])),
        ("Agents", ", ".join(f"{count} {state}" for state, count in overview["agents"].items())),
        ("Log", f"{head.size} entries, root {head.note.splitlines()[2]}"),
        ("Policies", ", ".join(f"{tenant} {digest[:16]}" for tenant, digest in overview["policies"].items())),
    ]
    refused = [row for kind in _REFUSED for row in broker.audit.newest(kind=kind, limit=MAX_ROWS)]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Cloister broker</title><style>{_STYLE}</style><h1>Cloister broker</h1>"
        f"{_table((), facts)}<h2>Agents</h2>{_agents(agents)}"
        f"<h2>Refused</h2>{_refusals(sorted(refused, key=lambda row: -row.index)[:MAX_ROWS])}"
        "<p class=note>Hatched rows are simulated trust domains: no hardware protects them.</p></html>"
    )


def _agents(records: Sequence[AgentRecord]) -> str:
    if not records:
        return "<p class=note>None has attested yet.</p>"
    rows = "".join(
        f"<tr class={'simulated' if record.simulated else 'real'}><td><code>{_text(record.subject)}</code>"
        f"<td class={_text(record.state)}>{_text(record.state)}<td>{_text(record.tcb_status)}"
        f"<td>{_text(', '.join(record.codes))}<td>{_time(record.judged_at_s * 1000)}"
        f"<td>{'simulated' if record.simulated else 'hardware'}"
        for record in records
    )
    head = "".join(f"<th>{name}" for name in ("Agent", "State", "TCB", "Because", "Judged", "Platform"))
    return f"<table><tr>{head}{rows}</table>"


def _refusals(rows: Iterable[LogRow]) -> str:
    told = []
    for row in rows:
        entry = json.loads(row.entry)
        told.append((_iso(row.at_ms), row.kind, row.subject, entry.get("resource", ""), ", ".join(entry["codes"])))
    return _table(("When", "What", "Who", "Which", "Because"), told) if told else "<p class=note>Nothing so far.</p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{_text(name)}" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{names}{body}</table>" if names else f"<table>{body}</table>"


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def _time(at_ms: int) -> str:
    return _text(_iso(at_ms))


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
