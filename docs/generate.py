"""Write docs/errors.md from the tables beside the codes, so that the page cannot fall behind the code.

`python -m docs.generate` writes it; `tests/test_docs.py` fails when it is not what this file would write.
"""

from importlib import import_module
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).with_name("errors.md")

# module with a MEANING table → heading, and one sentence on where its codes are seen
PARTS: Final = {
    "attestation.errors": (
        "Evidence",
        "Raised by `attestation`, printed by `cloister verify`, and answered by the broker when evidence is refused.",
    ),
    "policies.codes": (
        "Policies",
        "`policy.*` are reasons of a refused decision; `bundle.*` are found while a bundle is loaded or signed.",
    ),
    "broker.wire.errors": (
        "Between agent and broker",
        "Found by either side in what the other one sent.",
    ),
    "broker.errors": (
        "The broker",
        "Answered by the broker about requests, sessions, secrets and mailboxes.",
    ),
    "enclave.errors": (
        "Inside the trust domain",
        "Found by an agent itself. A refusal by the broker keeps the broker's code.",
    ),
    "simulator.errors": (
        "The simulated machine",
        "Printed by `cloister sim` and `cloister lab`; quotes that it makes are judged with the codes of evidence.",
    ),
}

INTRO: Final = """\
# Error codes

Written by `make docs` from the tables beside the codes. Do not edit this page.

Every refusal has a code. A code is public and stable: codes are added, never renamed and never reused. Test for codes,
not for the text of a message. Command line: exit status 1 refused, 2 usage, 3 malformed evidence, 4 could not judge.
Over HTTP a code is the member `code` of an `application/problem+json` body (RFC 9457).

An error message, a log line or an audit entry never holds a key, a token or a plaintext.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([INTRO, *(_part(*heading, module) for module, heading in PARTS.items())])


def _part(title: str, sentence: str, module: str) -> str:
    meaning: dict[str, tuple[str, str]] = import_module(module).MEANING
    rows = [f"| `{code}` | {_cell(what)} | {_cell(remedy)} |" for code, (what, remedy) in meaning.items()]
    return "\n".join(
        [f"## {title}", "", sentence, "", "| code | what happened | what to do |", "| --- | --- | --- |", *rows, ""]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.parent.name}/{PAGE.name}")


if __name__ == "__main__":
    main()
