"""The endpoints of unsealing, as a broker that is open answers them: there is nothing left to bring.

While it is sealed the same paths are served by sealed_http.py.
"""

from typing import Final

from broker.calls import Answer, Call, Door, Endpoint, row
from broker.wire.challenge import ChallengeRequest, ChallengeResponse
from broker.wire.unseal import Confirmation, ShareOffer, UnsealStatus


async def unseal_status(call: Call) -> Answer:
    """What a sealed broker lacks; an open one lacks nothing."""
    return UnsealStatus(state="open", checkpoint=call.broker.audit.head().note)


async def unseal(call: Call) -> Answer:
    """Bring a share of the root key to a sealed broker."""
    call.read(ShareOffer.from_dict)
    return UnsealStatus(state="open", checkpoint=call.broker.audit.head().note)


async def unseal_challenge(call: Call) -> Answer:
    """Have a sealed broker prove where a share would go."""
    wanted = call.read(ChallengeRequest.from_dict)
    return call.broker.admission.challenge(wanted, await call.broker.attestor.proof())


async def unseal_confirm(call: Call) -> Answer:
    """Stand for a sealed broker's newest checkpoint."""
    call.read(Confirmation.from_dict)
    return UnsealStatus(state="open", checkpoint=call.broker.audit.head().note)


_STATUS, _PATH = UnsealStatus, "/v1/unseal"
OPENING_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    row(f"GET {_PATH}", unseal_status, Door.OPEN, None, _STATUS),
    row(f"POST {_PATH}", unseal, Door.OPEN, ShareOffer, _STATUS),
    row(f"POST {_PATH}:challenge", unseal_challenge, Door.OPEN, ChallengeRequest, ChallengeResponse),
    row(f"POST {_PATH}:confirm", unseal_confirm, Door.ADMIN, Confirmation, _STATUS, changes=True),
)
