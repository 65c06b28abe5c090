"""The front door finds what Starlette would find, and leaves to it whatever it does not find."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from broker.rest.front import Front, Serve
from broker.rest.routes import ENDPOINTS

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")
PIECES = sorted({piece for endpoint in ENDPOINTS for piece in endpoint.path.replace(":", "/:").split("/")})


def _serve(number: int) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_: Request) -> Response:
        return Response(str(number))

    return serve


SERVED: list[tuple[Any, Serve]] = [(endpoint, _serve(number)) for number, endpoint in enumerate(ENDPOINTS)]
ROUTES = [Route(endpoint.path, serve, methods=[endpoint.method]) for endpoint, serve in SERVED]
FRONT = Front(SERVED)


def by_starlette(method: str, path: str) -> tuple[Any, dict[str, Any]] | None:
    scope = {"type": "http", "method": method, "path": path, "root_path": ""}
    for route in ROUTES:
        match, child = route.matches(scope)
        if match is Match.FULL:
            return child["endpoint"], child["path_params"]
    return None


def by_front(method: str, path: str) -> tuple[Any, dict[str, Any]] | None:
    found = FRONT.find(method, path)
    return None if found is None else (found[0], dict(found[1]))


def agrees(method: str, path: str) -> bool:
    """What is not found at the front goes the usual way, which is Starlette's."""
    found = by_front(method, path)
    return found is None or found == by_starlette(method, path)


def test_every_endpoint_of_the_table_is_found() -> None:
    for endpoint, serve in SERVED:
        path = re.sub(r"\{[^}]*\}", "7", endpoint.path)
        found = by_front(endpoint.method, path)
        assert found == by_starlette(endpoint.method, path), path
        assert found is not None, path
        assert found[0] is serve, path


@given(
    method=st.sampled_from(METHODS),
    parts=st.lists(st.sampled_from(PIECES) | st.text(alphabet="ab/:.~%\n é{}", max_size=4), max_size=6),
    joint=st.sampled_from(["/", "", ":"]),
)
def test_any_path_goes_where_starlette_would_send_it(method: str, parts: list[str], joint: str) -> None:
    path = "/" + joint.join(parts)
    assert agrees(method, path)
    assert agrees(method, path.replace("/:", ":"))


@given(
    endpoint=st.sampled_from(ENDPOINTS),
    name=st.text(alphabet="ab/:._-\n é", max_size=12),
    method=st.sampled_from(METHODS),
    tail=st.sampled_from(["", "/", ":send", "\n"]),
)
def test_any_parameter_is_read_as_starlette_reads_it(endpoint: Any, name: str, method: str, tail: str) -> None:
    head, _, rest = endpoint.path.partition("{")
    path = head + (name + rest.partition("}")[2] if rest else "") + tail
    assert agrees(endpoint.method, path)
    assert agrees(method, path)


def test_an_earlier_pattern_takes_a_later_path_that_it_fits() -> None:
    first, second = ENDPOINTS[0], ENDPOINTS[1]
    table = [
        (replace(first, method="GET", path="/a/{name:path}"), _serve(1)),
        (replace(second, method="GET", path="/a/b"), _serve(2)),
    ]
    found = Front(table).find("GET", "/a/b")
    assert found is not None
    assert found[0] is table[0][1]
