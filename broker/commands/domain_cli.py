"""`cloister broker reference`: what a trust domain shows, in the form in which agents' trust files want it.

Decides nothing: whether these are the values of what was meant to be deployed is for whoever pins them to compare.
"""

import json
import sys
from typing import Annotated

import typer

from attestation.errors import AttestationError
from broker.commands.admin_client import USAGE
from broker.errors import BrokerError

Machine = Annotated[str, typer.Option(envvar="CLOISTER_MACHINE", help="A simulated machine's folder.")]


def reference(
    trust_domain: Annotated[str, typer.Option(help="The domain to look at: tdx or simulated.")] = "tdx",
    machine: Machine = "",
) -> None:
    """Print what this domain shows, for a trust file. Compare [broker.reference] with what was meant, then pin it."""
    from broker.domains import open_domain, reference_values

    try:
        domain = open_domain(trust_domain, machine)
        values = reference_values(domain) if domain else {}
    except (AttestationError, BrokerError) as error:
        print(f"cloister: {error.code}: {error.detail}", file=sys.stderr)
        raise typer.Exit(USAGE) from None
    print(json.dumps(values, indent=2))
