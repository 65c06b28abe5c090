"""From a request's method and path to its endpoint, without asking every other endpoint first.

Decides nothing that the table of routes does not decide: the first endpoint whose pattern fits is the one, as Starlette
would find it, only that paths without parameters are looked up and that no middleware stands around them. Whatever is
not found here (other methods, unknown paths, slashes too many) goes the usual way, which knows how to refuse it.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from broker.calls import Endpoint

Serve = Callable[[Request], Awaitable[Response]]
Params = Mapping[str, Any]
_NONE: Final[Params] = {}


@final
@dataclass(frozen=True, slots=True)
class _Pattern:
    """One path with parameters."""

    begins: str  # every path that fits begins so
    regex: re.Pattern[str]
    read: tuple[tuple[str, Callable[[str], Any]], ...]
    serve: Serve

    def params(self, path: str) -> Params | None:
        if not path.startswith(self.begins):
            return None
        fits = self.regex.match(path)
        return None if fits is None else {name: read(fits[name]) for name, read in self.read}


@final
class Front:
    """The endpoints in the order of their table, each with the function that serves it."""

    def __init__(self, served: Sequence[tuple[Endpoint, Serve]]) -> None:
        self._exact: dict[tuple[str, str], Serve] = {}
        self._patterns: dict[str, list[_Pattern]] = {}
        for endpoint, serve in served:
            regex, _, read = compile_path(endpoint.path)
            known = self._patterns.setdefault(endpoint.method, [])
            if read:
                begins = endpoint.path.partition("{")[0]
                converts = tuple((name, convertor.convert) for name, convertor in read.items())
                known.append(_Pattern(begins, regex, converts, serve))
            elif all(pattern.params(endpoint.path) is None for pattern in known):  # else an earlier one takes it
                self._exact.setdefault((endpoint.method, endpoint.path), serve)

    def find(self, method: str, path: str) -> tuple[Serve, Params] | None:
        """Who serves it, and the parameters in the path."""
        serve = self._exact.get((method, path))
        if serve is not None:
            return serve, _NONE
        for pattern in self._patterns.get(method, ()):
            params = pattern.params(path)
            if params is not None:
                return pattern.serve, params
        return None
