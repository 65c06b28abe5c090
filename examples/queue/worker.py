"""Works off orders from a queue. A number that was booked already is not booked again; nonsense is never retried.

Run it, in a lab: `cloister run examples/queue/worker.py --simulated`
"""

from dataclasses import dataclass

from enclave import Agent, Context, Reject, Retry

agent = Agent("worker")
booked: dict[str, int] = {}


@dataclass
class Order:
    number: str
    pieces: int


@dataclass
class Booked:
    number: str
    in_stock: int


@agent.on_message(Order, idempotent=lambda order: order.number, retry=Retry(attempts=3), deadline_s=20)
async def book(ctx: Context, order: Order) -> Booked:
    if order.pieces < 1:
        raise Reject("order.no_pieces")  # a dead letter at once; who asked reads this code
    booked[order.number] = order.pieces
    return Booked(number=order.number, in_stock=100 - sum(booked.values()))


agent.run()
