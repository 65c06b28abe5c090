"""The options of `cloister verify`, `cloister quote` and `cloister measure`.

Decides names and help texts of options alone; each command lives in a file of its own, which is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from attestation.terminal import prepare_output

verify: Final = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
quote: Final = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
measure: Final = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@verify.command(name="verify")
def _verify(
    quote: Annotated[
        str, typer.Argument(metavar="QUOTE", help="The quote: raw bytes, or a file of hex digits; - is stdin.")
    ],
    collateral: Annotated[
        str | None, typer.Option(metavar="FILE", help="Collateral as JSON; without it the PCS is asked.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Judge as of this time: RFC 3339 or Unix seconds. Default: now.")
    ] = None,
    report_data: Annotated[
        str | None, typer.Option(metavar="HEX", help="The 64 bytes that REPORT_DATA must be; without it, not compared.")
    ] = None,
    event_log: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Event log (CCEL data or dstack JSON) that must replay to the RTMRs."),
    ] = None,
    root: Annotated[str | None, typer.Option(metavar="PEM", help="Trust this root instead of Intel's.")] = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="DIR", help="A policy bundle that decides what is accepted.")
    ] = None,
    accept: Annotated[
        str | None, typer.Option(metavar="STATUS,…|any", help="TCB states that pass. Default: UpToDate alone.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="sept_ve_disable_clear, migratable, service_td or unknown_attributes; may be repeated.",
        ),
    ] = None,
    pcs: Annotated[str | None, typer.Option(metavar="URL", help="Ask this PCS or PCCS. Default: Intel's.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where fetched collateral is kept. Default: the user's cache folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a quote: is it genuine, up to date, and about what you expect?

    Exit status: 0 fine, 1 refused, 2 usage, 3 malformed evidence, 4 could not judge.
    """
    from attestation import verify_cli

    prepare_output()
    options = verify_cli.Options(
        quote=quote,
        collateral=collateral,
        at=at,
        report_data=report_data,
        event_log=event_log,
        root=root,
        bundle=bundle,
        accept=accept,
        allow=tuple(allow or ()),
        pcs=pcs,
        cache=cache,
        as_json=as_json,
    )
    raise typer.Exit(verify_cli.verify(options))


@quote.callback()
def _quote() -> None:
    """Show what a quote claims. Nothing is verified."""


@quote.command(name="inspect")
def _inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A quote; - is stdin.")], as_json: Json = False
) -> None:
    """Every field with offset, length, value and meaning, and what the certificates say."""
    from attestation import inspect_cli

    prepare_output()
    raise typer.Exit(inspect_cli.inspect(file, as_json=as_json))


@quote.command(name="diff")
def _diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A quote.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: Json = False,
) -> None:
    """The fields in which two quotes differ."""
    from attestation import inspect_cli

    prepare_output()
    raise typer.Exit(inspect_cli.diff(first, second, as_json=as_json))


@measure.command(name="measure")
def _measure(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A TDVF firmware image.")],
    variant: Annotated[
        str, typer.Option(metavar="NAME", help="Order in which the VMM measures pages: single-pass or two-pass.")
    ] = "single-pass",
    event_log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An event log; its replay predicts the RTMRs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict MRTD, and with an event log the RTMRs, of a trust domain started from an image."""
    from attestation import measure_cli

    prepare_output()
    raise typer.Exit(measure_cli.measure(image, variant=variant, event_log=event_log, as_json=as_json))
