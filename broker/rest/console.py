"""One page for whoever runs the broker: who is here, what was refused and why, where the log stands.

Decides how it looks. It stands alone (no script, nothing fetched), a strict Content-Security-Policy keeps it so, and
simulated agents are hatched and never green, so that nobody takes one for a real one. Everything shown is escaped. It
asks for no credentials, so what would make a refused agent pass is on it in the development profile alone.
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
MAX_NAME: Final = 80
_REFRESH: Final = "<meta http-equiv=refresh content=10>"
_SIMULATED: Final = (
    "<p class=simulated role=note>SIMULATED: this broker trusts another root than Intel's, so trust domains that no "
    "hardware protects are admitted here.</p>"
)
_REFUSED: Final = (Kind.AGENT_REFUSED, Kind.AGENT_QUARANTINED, Kind.SECRET_REFUSED, Kind.EDGE_REFUSED)
_STYLE: Final = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884}
td{vertical-align:top;white-space:nowrap}td:last-child{white-space:normal;min-width:14rem;overflow-wrap:anywhere}
code{font-size:.9em}ul{margin:.2rem 0 0;padding-left:1.1rem;opacity:.8}
.simulated{background:repeating-linear-gradient(45deg,#e8a80033 0 8px,#0000 8px 16px)}
p.simulated{padding:.6rem;border:1px solid #e8a80088}
.real .admitted{color:#1a7f37}.quarantined,.revoked,.refused{color:#cf222e}.note{opacity:.7}
@media (prefers-color-scheme:dark){.real .admitted{color:#4ac26b}.quarantined,.revoked,.refused{color:#ff7b72}}
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
    home = broker.attestor.summary
    facts = [
        ("Broker", broker.settings.public_url),
        (
            "Runs in",
            f"trust domain {home['domain']}, quoted {_iso(int(home['quoted_at_s']) * 1000)}"
            if home
            else "no trust domain",
        ),
        ("Broker id", broker.identity.broker_id.hex()),
        ("Profile", broker.settings.profile),
        ("Generation", str(overview["generation"])),
        ("Agents", ", ".join(f"{count} {state}" for state, count in overview["agents"].items())),
        ("Log", f"{head.size} entries, root {head.note.splitlines()[2]}"),
        ("Policies", ", ".join(f"{tenant} {digest[:16]}" for tenant, digest in overview["policies"].items())),
        ("Collateral", ", ".join(overview["collateral"]) or "none yet"),
    ]
    refused = [row for kind in _REFUSED for row in broker.audit.newest(kind=kind, limit=MAX_ROWS)]
    newest = sorted(refused, key=lambda row: -row.index)[:MAX_ROWS]
    developing = not broker.settings.production
    pretended = broker.settings.roots_file is not None or any(record.simulated for record in agents)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"{_REFRESH if developing else ''}<title>Cloister broker</title><style>{_STYLE}</style>"
        f"<h1>Cloister broker</h1>{_SIMULATED if pretended else ''}{_table((), facts)}"
        f"<h2>Agents</h2>{_agents(agents)}{_command('cloister agent list')}"
        f"<h2>Refused</h2>{_refusals(newest, developing)}{_command('cloister audit show')}"
        "<p class=note>Hatched rows are simulated trust domains: no hardware protects them.</p></html>"
    )


def _agents(records: Sequence[AgentRecord]) -> str:
    if not records:
        return "<p class=note>None has attested yet.</p>"
    newest = sorted(records, key=lambda record: -record.judged_at_s)
    rows = "".join(
        f"<tr class={'simulated' if record.simulated else 'real'}><td>{_text(_launched(record))}"
        f"<td class={_text(record.state)}>{_text(record.state)}<td>{_text(record.tcb_status)}"
        f"<td>{'simulated' if record.simulated else 'hardware'}<td>{_text(_iso(record.judged_at_s * 1000))}"
        f"<td><code>{_text(record.subject)}</code><td>{_text(', '.join(record.codes))}"
        for record in newest
    )
    return _framed(("Launched", "State", "TCB", "Platform", "Judged", "Agent", "Because"), rows)


def _launched(record: AgentRecord) -> str:
    """What the launches call themselves: for people, who tell agents apart by it; no policy reads it."""
    launches = json.loads(record.facts).get("launches") or []
    return ", ".join(str(launch.get("name", "")) for launch in launches)[:MAX_NAME] or "-"


def _refusals(rows: Iterable[LogRow], developing: bool) -> str:
    told = []
    for row in rows:
        entry = json.loads(row.entry)
        because = _text(", ".join(entry["codes"]))
        if developing and entry.get("reasons"):
            because += "<ul>" + "".join(f"<li>{_text(reason)}" for reason in entry["reasons"]) + "</ul>"
        cells = (_text(_iso(row.at_ms)), _text(row.kind), _text(entry.get("resource", "")))
        who = f"<code>{_text(row.subject or '-')}</code>"
        told.append("<tr>" + "".join(f"<td>{cell}" for cell in (*cells, who, because)))
    if not told:
        return "<p class=note>Nothing so far.</p>"
    return _framed(("When", "What", "Which", "Who", "Because"), "".join(told))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _framed(head, "".join("<tr>" + "".join(f"<td>{_text(cell)}" for cell in row) for row in rows))


def _framed(head: Sequence[str], rows: str) -> str:
    """Wider than a small screen: then the table moves, not the page."""
    names = "".join(f"<th scope=col>{_text(name)}" for name in head)
    return f"<div class=wide tabindex=0><table>{f'<tr>{names}' if names else ''}{rows}</table></div>"


def _command(line: str) -> str:
    return f"<p class=note>The same in a terminal: <code>{_text(line)}</code></p>"


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
