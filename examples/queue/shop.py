"""Puts orders into the worker's queue, one of them twice and one that is nonsense, and prints what comes back.

Run it, with the worker running: `cloister run examples/queue/shop.py --simulated`
"""

from dataclasses import dataclass

from enclave import Agent, CloisterError, Context

agent = Agent("shop")


@dataclass
class Order:
    number: str
    pieces: int


@dataclass
class Booked:
    number: str
    in_stock: int


@agent.on_start
async def sell(ctx: Context) -> None:
    for order in (Order("A-1", 3), Order("A-2", 4), Order("A-1", 3), Order("A-3", 0)):
        try:
            booked = await ctx.ask("worker", order, Booked)
            print(f"{order.number}: {booked.in_stock} left", flush=True)
        except CloisterError as error:
            print(f"{order.number}: {error.detail}", flush=True)  # the code that the worker gave as its reason
    agent.end()


agent.run()
