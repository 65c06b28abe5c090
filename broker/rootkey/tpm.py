"""The root key sealed by a TPM 2.0 to the state in which the machine was started (its PCRs).

Decides the object (a sealed KEYEDHASH under a primary key of the owner's hierarchy, policy PolicyPCR and nothing else)
and that nothing secret crosses the bus in the clear: sessions are salted to the primary key and encrypt parameters.

For brokers outside trust domains: a trust domain's vTPM usually belongs to the host, who could then open what it seals.
Spec: TCG TPM 2.0 Library, Part 3. Through `tpm2-pytss`, which is in the extra `tpm` alone and imported only here.
"""

import contextlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from attestation.encoding import b64url, from_b64url
from broker.errors import BrokerCode, BrokerError

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI

DEFAULT_PCRS: Final = "sha256:0,2,4,7"  # firmware, its options, the boot loader, the state of Secure Boot
DEFAULT_TCTI: Final = "device:/dev/tpmrm0"
MAX_BLOB: Final = 2048
PAUSES_S: Final = (0.1, 0.3, 0.9)
_PCRS: Final = re.compile(r"sha(256|384):(?:[0-9]|1[0-9]|2[0-3])(?:,(?:[0-9]|1[0-9]|2[0-3]))*")
_NO_LOG: Final = "all+none"  # the C library writes to stderr by itself; what went wrong is told by our code


def available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("tpm2_pytss") is not None


def seal(raw: bytes, *, tcti: str = DEFAULT_TCTI, pcrs: str = DEFAULT_PCRS) -> dict[str, Any]:
    """Members of the root file: they open on this TPM alone, while these PCRs have today's values.

    Raises BrokerError root.tpm_unavailable, config.invalid.
    """
    if not _PCRS.fullmatch(pcrs):
        raise BrokerError(BrokerCode.CONFIG_INVALID, f"{pcrs!a}: name PCRs like {DEFAULT_PCRS}")
    with _tpm(tcti) as tpm, contextlib.ExitStack() as handles:
        import tpm2_pytss as tss

        primary = _primary(tpm, handles)
        trial = _session(tpm, handles, primary, tss.TPM2_SE.TRIAL)
        tpm.policy_pcr(trial, b"", pcrs)
        policy = tpm.policy_get_digest(trial)
        template = tss.TPM2B_PUBLIC.parse("keyedhash", objectAttributes=_ATTRIBUTES, authPolicy=policy)
        hidden = tss.TPM2B_SENSITIVE_CREATE(tss.TPMS_SENSITIVE_CREATE(data=tss.TPM2B_SENSITIVE_DATA(raw)))
        session = _session(tpm, handles, primary, tss.TPM2_SE.HMAC, encrypt=True)
        private, public, *_ = tpm.create(primary, hidden, template, session2=session)
        return {"pcrs": pcrs, "public": b64url(public.marshal()), "private": b64url(private.marshal())}


def open_sealed(members: dict[str, Any], *, tcti: str = DEFAULT_TCTI) -> bytes:
    """The root key's bytes. Raises BrokerError root.tpm_unavailable, root.tpm_refused, root.file_invalid."""
    try:
        pcrs = str(members["pcrs"])
        public, private = (from_b64url(members[name]) for name in ("public", "private"))
        if not _PCRS.fullmatch(pcrs) or max(len(public), len(private)) > MAX_BLOB:
            raise ValueError("pcrs or size")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokerError(BrokerCode.ROOT_FILE, f"TPM members: {type(error).__name__}") from None
    with _tpm(tcti) as tpm, contextlib.ExitStack() as handles:
        import tpm2_pytss as tss

        primary = _primary(tpm, handles)
        with _refusing(pcrs):
            sealed, _ = tss.TPM2B_PUBLIC.unmarshal(public)
            hidden, _ = tss.TPM2B_PRIVATE.unmarshal(private)
            item = tpm.load(primary, hidden, sealed)
            handles.callback(tpm.flush_context, item)
            session = _session(tpm, handles, primary, tss.TPM2_SE.POLICY, encrypt=True)
            tpm.policy_pcr(session, b"", pcrs)
            return bytes(tpm.unseal(item, session1=session))


_ATTRIBUTES: Final = "fixedtpm|fixedparent|noda"  # no userwithauth: the PCR policy is the only way


def _primary(tpm: "ESAPI", handles: contextlib.ExitStack) -> Any:
    """The owner's ECC primary key: the same one each time, from the TPM's own seed."""
    primary, *_ = tpm.create_primary(None, "ecc")
    handles.callback(tpm.flush_context, primary)
    return primary


def _session(tpm: "ESAPI", handles: contextlib.ExitStack, primary: Any, kind: Any, *, encrypt: bool = False) -> Any:
    """A session salted to the primary key; with `encrypt` the TPM's answer crosses the bus encrypted."""
    import tpm2_pytss as tss

    cipher = tss.TPMT_SYM_DEF(
        algorithm=tss.TPM2_ALG.AES,
        keyBits=tss.TPMU_SYM_KEY_BITS(sym=128),
        mode=tss.TPMU_SYM_MODE(sym=tss.TPM2_ALG.CFB),
    )
    session = tpm.start_auth_session(primary, tss.ESYS_TR.NONE, kind, cipher, tss.TPM2_ALG.SHA256)
    handles.callback(tpm.flush_context, session)
    if encrypt:
        both = tss.TPMA_SESSION.ENCRYPT | tss.TPMA_SESSION.DECRYPT | tss.TPMA_SESSION.CONTINUESESSION
        tpm.trsess_set_attributes(session, both)
    return session


@contextlib.contextmanager
def _tpm(tcti: str) -> Iterator["ESAPI"]:
    """Raises BrokerError root.tpm_unavailable."""
    if not available():
        raise BrokerError(BrokerCode.ROOT_TPM_UNAVAILABLE, "tpm2-pytss is not installed: pip install 'cloister[tpm]'")
    os.environ.setdefault("TSS2_LOG", _NO_LOG)
    import tpm2_pytss as tss

    tpm = _reached(tss.ESAPI, (tss.TSS2_Exception, RuntimeError), tcti)
    try:
        yield tpm
    except tss.TSS2_Exception as error:
        raise BrokerError(BrokerCode.ROOT_TPM_UNAVAILABLE, f"TPM at {tcti!a}: {error}") from None
    finally:
        tpm.close()


def _reached(connect: Callable[[str], "ESAPI"], wrong: tuple[type[Exception], ...], tcti: str) -> "ESAPI":
    """A TPM serves one client at a time; one that is busy is asked again. Raises BrokerError root.tpm_unavailable."""
    for pause_s in (*PAUSES_S, None):
        try:
            return connect(tcti)
        except wrong as error:
            if pause_s is None:
                raise BrokerError(BrokerCode.ROOT_TPM_UNAVAILABLE, f"no TPM at {tcti!a}: {error}") from None
            time.sleep(pause_s)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _refusing(pcrs: str) -> Iterator[None]:
    import tpm2_pytss as tss

    try:
        yield
    except (tss.TSS2_Exception, ValueError) as error:
        detail = f"the TPM does not open the root key; {pcrs} are not what they were, or it is another TPM ({error})"
        raise BrokerError(BrokerCode.ROOT_TPM, detail) from None
