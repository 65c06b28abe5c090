"""The lab's console: one page that shows the simulated machine, the agents and the broker's decisions. Reads only.

Decides how it looks. It works without scripts, refreshes itself, is served to this machine alone, and draws simulated
trust domains hatched and never green, so that nobody takes one for a real one. Never a secret or a message body: its
facts are those of the audit log.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self, final

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222;background:#fafafa}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;
vertical-align:top}code{font-size:.85em;word-break:break-all}.no{color:#a00}.quiet{color:#666}
.sim{background:repeating-linear-gradient(45deg,#eee,#eee 8px,#f7efd5 8px,#f7efd5 16px)}
.banner{padding:.6rem 1rem;border:1px solid #c9b458}
"""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the page shows, as plain text: facts by name, then tables of rows by column."""

    facts: Mapping[str, str]
    agents: Sequence[Mapping[str, str]]
    decisions: Sequence[Mapping[str, str]]  # newest first


def render(view: View) -> str:
    """The whole page. Everything that is shown is escaped."""
    facts = "".join(
        f"<tr><th>{_text(name)}</th><td><code>{_text(value)}</code></td></tr>" for name, value in view.facts.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        f"<title>Cloister lab</title><style>{_STYLE}</style></head><body><h1>Cloister lab</h1>"
        '<p class="banner sim">Simulated hardware. Nothing here is protected from this machine.</p>'
        f"<table>{facts}</table>"
        f"<h2>Agents</h2>{_table(view.agents, 'No agent has attested yet.', row_class='sim')}"
        f"<h2>Decisions, newest first</h2>{_table(view.decisions, 'None yet.')}"
        '<p class="quiet">All: <code>cloister audit show</code>. Metadata only: the broker cannot read messages.</p>'
        "</body></html>"
    )


def _table(rows: Sequence[Mapping[str, str]], empty: str, *, row_class: str = "") -> str:
    if not rows:
        return f'<p class="quiet">{_text(empty)}</p>'
    head = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    body = "".join(_row(row, row_class) for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _row(row: Mapping[str, str], row_class: str) -> str:
    refused = any("refused" in value or "quarantined" in value for value in row.values())
    cells = "".join(f"<td><code>{_text(value)}</code></td>" for value in row.values())
    return f'<tr class="{row_class}{" no" if refused else ""}">{cells}</tr>'


def _text(value: str) -> str:
    return html.escape(value, quote=True)


@final
class ConsoleServer:
    """Serves the page of whatever `look` returns, on loopback. A context manager."""

    def __init__(self, look: Callable[[], View], *, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), look)
        self._thread = threading.Thread(target=self._server.serve_forever, name="lab-console", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], look: Callable[[], View]) -> None:
        super().__init__(address, _Handler)
        self.look = look


class _Handler(BaseHTTPRequestHandler):
    timeout = 5
    server: _Server

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):  # a name that somebody else made point here
            self.send_error(421)
            return
        if self.path != "/":
            self.send_error(404)
            return
        page = render(self.server.look()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: standard error belongs to the lab."""
