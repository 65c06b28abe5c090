"""Certificate chains, judged: the PCK chain in a quote, and the issuer chains of collateral.

Decides the order of demands on a chain (form, length, names, profile, root, signatures) and writes each down as a
check. What a demand is, is in `pki` and `certificates`. Revocation and time are judged later, where CRLs and clock are.

Source: Intel's quote verification library, `PckCertVerifier.cpp` and `CommonVerifier.cpp`; RFC 5280, 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, final

from attestation import checks as step
from attestation.certificates import Certificate
from attestation.checks import Check, Ledger, Step, Unmet
from attestation.errors import Code, MalformedEvidence, VerificationFailed
from attestation.pck import PckFacts
from attestation.pem import pem_blocks, pem_decode
from attestation.pki import (
    PCK_CHAIN,
    KnownCertificates,
    Role,
    TrustRoots,
    each_signed,
    ends_in,
    follows_profile,
    in_roles,
)
from attestation.quote import Quote
from attestation.validity import Window

_CERTIFICATION_WITH_CHAIN: Final = 5
_LABEL: Final = "PCK chain"


@final
class ChainSteps(NamedTuple):
    """The six steps of one kind of chain."""

    form: Step
    length: Step
    names: Step
    profile: Step
    root: Step
    signatures: Step


PCK_STEPS: Final = ChainSteps(
    step.CHAIN_FORM,
    step.CHAIN_LENGTH,
    step.CHAIN_NAMES,
    step.CHAIN_PROFILE,
    step.CHAIN_ROOT,
    step.CHAIN_SIGNATURES,
)
SIGNER_STEPS: Final = ChainSteps(
    step.SIGNER_FORM,
    step.SIGNER_LENGTH,
    step.SIGNER_NAMES,
    step.SIGNER_PROFILE,
    step.SIGNER_ROOT,
    step.SIGNER_SIGNATURES,
)


@final
class Chain(NamedTuple):
    """Certificates in the order of their roles, signer first; the trusted root that they end in, or None."""

    certificates: tuple[Certificate, ...]
    roles: tuple[Role, ...]
    trusted: Certificate | None

    def windows(self, begun: Step, lasts: Step) -> list[Window]:
        """One for each certificate; the root's is narrowed by the trusted edition of it."""
        found = [
            Window(begun, lasts, certificate.common_name, certificate.not_before, certificate.not_after)
            for certificate in self.certificates
        ]
        if self.trusted is not None and self.trusted is not self.certificates[-1]:
            found.append(Window(begun, lasts, "trusted root", self.trusted.not_before, self.trusted.not_after))
        return found


def judge_chains(
    ledger: Ledger,
    steps: ChainSteps,
    texts: dict[str, tuple[bytes, tuple[Role, ...]]],
    roots: TrustRoots,
    known: KnownCertificates,
) -> dict[str, Chain]:
    """Chains whose certificates are known by role, under their labels. Which demands they met is in `ledger`.

    Signatures are left to `prove_chains`.
    """

    def form(item: tuple[bytes, tuple[Role, ...]]) -> Chain:
        bodies = pem_blocks(item[0], in_quote=steps is PCK_STEPS)
        return Chain(tuple([known.parse(body) for body in bodies]), item[1], None)

    named = ledger.each(steps.names, ledger.each(steps.length, ledger.each(steps.form, texts, form), _length), _names)
    ledger.each(steps.profile, named, lambda chain: follows_profile(chain.certificates, chain.roles))
    rooted = ledger.each(steps.root, named, lambda chain: _rooted(chain, roots))
    return named | rooted


def prove_chains(ledger: Ledger, steps: ChainSteps, chains: dict[str, Chain], known: KnownCertificates) -> None:
    """The last demand on chains, and the one that costs: that each certificate is signed by the one above it."""
    ledger.each(steps.signatures, chains, lambda chain: _signatures(chain, known))


def _length(chain: Chain) -> Chain:
    if len(chain.certificates) != len(chain.roles):
        wanted = ", ".join(role.title for role in chain.roles)
        raise Unmet(f"{len(chain.certificates)} certificates, need {len(chain.roles)}: {wanted}")
    return chain


def _names(chain: Chain) -> Chain:
    return Chain(in_roles(chain.certificates, chain.roles), chain.roles, None)


def _rooted(chain: Chain, roots: TrustRoots) -> Chain:
    return Chain(chain.certificates, chain.roles, ends_in(chain.certificates[-1], roots))


def _signatures(chain: Chain, known: KnownCertificates) -> None:
    """Under a root that nobody trusts, the signatures below it are still worth knowing."""
    each_signed(chain.certificates, chain.trusted or chain.certificates[-1], known)


@final
class PckChain(NamedTuple):
    """What the chain in a quote turned out to be. Only `ok` means that it may be believed, and only while in force."""

    ledger: Ledger
    chain: Chain | None
    facts: PckFacts | None
    windows: tuple[Window, ...]

    @property
    def ok(self) -> bool:
        return self.ledger.ok

    @property
    def checks(self) -> list[Check]:
        return self.ledger.checks

    @property
    def leaf(self) -> Certificate | None:
        return None if self.chain is None else self.chain.certificates[0]

    @property
    def trusted(self) -> Certificate | None:
        return None if self.chain is None else self.chain.trusted


def judge_pck_chain(quote: Quote, roots: TrustRoots, earlier: KnownCertificates | None = None) -> PckChain:
    """Judge the certificates inside `quote`. `earlier` spares what was parsed and proved before."""
    ledger, known = Ledger(), KnownCertificates(roots, earlier)
    chains = _up_to_root(ledger, quote, roots, known)
    chain = chains.get(_LABEL)
    facts: PckFacts | None = None
    windows: list[Window] = []
    if chain is not None:
        leaf, ca, _ = chain.certificates
        facts = ledger.run(step.CHAIN_PCK_EXTENSION, PckFacts.of, leaf, ca.common_name)
        windows = chain.windows(step.CHAIN_BEGUN, step.CHAIN_LASTS)
    ledger.later(lambda: prove_chains(ledger, PCK_STEPS, chains, known))
    return PckChain(ledger, chain=chain, facts=facts, windows=tuple(windows))


def root_checks(quote: Quote, roots: TrustRoots) -> list[Check]:
    """Whether the chain in a quote has its form and names a trusted root above itself; no signature is looked at.

    It proves nothing: it spares those signatures where the answer is no already.
    """
    ledger = Ledger()
    _up_to_root(ledger, quote, roots, KnownCertificates(roots))
    return ledger.checks


def _up_to_root(ledger: Ledger, quote: Quote, roots: TrustRoots, known: KnownCertificates) -> dict[str, Chain]:
    """The chain in the quote, judged up to its signatures; empty where there is none."""
    ledger.run(step.CHAIN_PRESENT, _present, quote.certification_type)
    texts = {_LABEL: (quote.certification_data, PCK_CHAIN)}
    return judge_chains(ledger, PCK_STEPS, texts, roots, known) if ledger.ok else {}


def claimed_platform(quote: Quote) -> PckFacts:
    """Which platform a quote *says* it comes from: enough to fetch collateral for it, and to be believed in nothing.

    Raises VerificationFailed: chain.not_in_quote. Raises MalformedEvidence: chain.malformed, chain.length, chain.names,
    chain.pck_extension.
    """
    if quote.certification_type != _CERTIFICATION_WITH_CHAIN:
        raise VerificationFailed(Code.CHAIN_NOT_IN_QUOTE, f"certification data of type {quote.certification_type}")
    at = step.CHAIN_FORM
    try:
        bodies = pem_blocks(quote.certification_data, in_quote=True)
        certificates: Sequence[Certificate] = [Certificate.parse(pem_decode(body)) for body in bodies]
        at = step.CHAIN_LENGTH
        chain = _length(Chain(tuple(certificates), PCK_CHAIN, None))
        at = step.CHAIN_NAMES
        leaf, ca, _ = _names(chain).certificates
        at = step.CHAIN_PCK_EXTENSION
        return PckFacts.of(leaf, ca.common_name)
    except Unmet as unmet:
        raise MalformedEvidence(at.code, unmet.detail) from unmet


def _present(certification_type: int) -> None:
    if certification_type != _CERTIFICATION_WITH_CHAIN:
        raise Unmet(
            f"certification data of type {certification_type}; only type {_CERTIFICATION_WITH_CHAIN} holds the chain",
            "Set up the platform's PCK cache (PCCS) and quote again.",
        )
