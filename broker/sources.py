"""What the settings name, opened: roots, root key, collateral, bundles.

Decides where each comes from when the settings leave it out.
"""

from collections.abc import Sequence
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from attestation.pki import TrustRoots
from attestation.ports import CollateralSource
from broker.config import Settings
from broker.errors import BrokerCode, BrokerError
from broker.ports import Clock
from broker.rootkey.methods import load as load_root
from broker.rootkey.root import RootKey
from policies.bundle import Bundle, load_bundle
from policies.signing import Signers


def roots_of(settings: Settings) -> TrustRoots:
    """Whom quotes are believed under: Intel's root, unless a file is named. Raises MalformedEvidence, OSError."""
    return TrustRoots.intel() if settings.roots_file is None else TrustRoots.from_pem(settings.roots_file.read_bytes())


def root_key_of(settings: Settings, passphrase: bytes | None) -> RootKey:
    """The root key, opened. Raises BrokerError root.*"""
    if settings.root_key_file is None:
        return RootKey.generate()
    return load_root(settings.root_key_file, passphrase=passphrase, tcti=settings.tcti)


def collateral_source(settings: Settings, clock: Clock) -> CollateralSource:
    """Where the settings say that collateral comes from."""
    return pcs_of(settings, roots_of(settings), clock)


def pcs_of(
    settings: Settings, roots: TrustRoots, clock: Clock, channel: Literal["standard", "early"] = "standard"
) -> CollateralSource:
    """The PCS, with its answers kept beside the database."""
    from attestation.net.pcs import PcsClient

    home = settings.database.parent if settings.database else None
    cache = settings.pcs_cache or (home / "collateral" if home else None)
    age_s = float(settings.refresh_s)
    return PcsClient(settings.pcs_url, cache, roots=roots, channel=channel, now=clock, max_age_s=age_s)


def bundles_of(settings: Settings) -> Sequence[Bundle]:
    """The bundles as they stand in their folders now, signed by enough of the signers where the settings name some.

    Raises BundleError; BrokerError config.invalid.
    """
    signers = signers_of(settings)
    return [load_bundle(path, signers=signers) for path in settings.bundles]


def signers_of(settings: Settings) -> Signers | None:
    """Whose signatures make a policy. Raises BrokerError config.invalid."""
    if not settings.signers:
        return None
    try:
        keys = [load_pem_public_key(path.read_bytes()) for path in settings.signers]
        good = tuple(key for key in keys if isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey))
        if len(good) != len(keys):
            raise ValueError("Ed25519 and P-256 keys sign policies")
        return Signers(good, settings.signers_needed)
    except (OSError, ValueError) as error:
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"policy.signers: {error}") from None
