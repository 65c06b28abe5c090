"""What is installed beside this package and can be found by name: the entry points of the project's own groups.

Decides where names are looked up: in what is installed, and, where the project runs from a checkout, in its own
pyproject.toml besides. Nothing that is found is imported here. So a simulator, hardware and further subcommands are
reached without anybody's code naming theirs.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

PROJECT: Final = "cloister"


def provided(group: str) -> dict[str, str]:
    """name → reference `module:attribute`. What is installed comes before what a checkout declares."""
    declared = checkout().get("entry-points", {}).get(group, {})
    return {**declared, **{point.name: point.value for point in entry_points(group=group)}}


def checkout() -> dict[str, Any]:
    """The table [project] of pyproject.toml, where these packages lie beside the project's own; else empty."""
    try:
        text = Path(__file__).resolve().parent.parent.joinpath("pyproject.toml").read_text(encoding="utf-8")
        found: dict[str, Any] = tomllib.loads(text).get("project", {})
    except (OSError, ValueError):
        return {}
    return found if found.get("name") == PROJECT else {}
