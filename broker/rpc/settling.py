"""What an agent says on its stream about deliveries, in the form that leases.py and states.py take. Decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, final

from broker.wire import stream_pb2 as pb
from broker.wire.errors import WireCode, WireError
from broker.wire.fields import MAX_INT, NONCE_LEN
from broker.wire.leases import MAX_LEASE_TOKEN, AckRequest, Extension, Nak, Partly, Rejection
from broker.wire.state import MAX_STATE, SaveRequest

MAX_SETTLES: Final = 2048  # in one message


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """The request; every lease in it; those that it ends."""

    request: AckRequest
    named: tuple[str, ...]
    ended: tuple[str, ...]

    @classmethod
    def of(cls, settles: Sequence[pb.Settle]) -> Self:
        """Raises WireError body.field_invalid."""
        if len(settles) > MAX_SETTLES or any(not 0 < len(one.lease) <= MAX_LEASE_TOKEN for one in settles):
            raise WireError(WireCode.BODY_FIELD_INVALID, "settles")
        done, nak, partly, extend, reject = [], [], [], [], []
        for one in settles:
            told = {"lease": one.lease, **({"code": one.code} if one.code else {})}
            match one.verb:
                case pb.Settle.ACK if not getattr(one, "except"):
                    done.append(one.lease)
                case pb.Settle.ACK:
                    but = list(getattr(one, "except"))
                    partly.append(Partly.from_dict(told | {"but": but, "delay_s": one.delay_s}))
                case pb.Settle.NAK:
                    nak.append(Nak.from_dict(told | {"delay_s": one.delay_s}))
                case pb.Settle.EXTEND:
                    extend.append(Extension.from_dict({"lease": one.lease, "lease_s": one.delay_s}))
                case pb.Settle.REJECT:
                    reject.append(Rejection.from_dict(told))
                case _:
                    raise WireError(WireCode.BODY_FIELD_INVALID, "settles.verb")
        request = AckRequest(
            ack=tuple(done), nak=tuple(nak), partly=tuple(partly), extend=tuple(extend), reject=tuple(reject)
        )
        kept = {one.lease for one in extend}
        named = tuple(one.lease for one in settles)
        return cls(request=request, named=named, ended=tuple(lease for lease in named if lease not in kept))


def saving(save: pb.Save) -> SaveRequest:
    """The checkpoint alone. Raises WireError body.field_invalid."""
    if len(save.nonce) != NONCE_LEN or len(save.sealed) > MAX_STATE or not 0 < save.number <= MAX_INT:
        raise WireError(WireCode.BODY_FIELD_INVALID, "save")
    return SaveRequest(number=save.number, sealed=save.sealed, nonce=save.nonce)
