"""Asks the hello agent for a greeting, prints it and ends: `cloister run examples/greet.py --simulated -- Ada`."""

import sys
from dataclasses import dataclass

from enclave import Agent, Context

agent = Agent("greet")


@dataclass
class Greet:
    name: str


@dataclass
class Greeting:
    text: str


@agent.on_start
async def ask(ctx: Context) -> None:
    greeting = await ctx.ask("hello", Greet(name=" ".join(sys.argv[1:]) or "you"), Greeting)
    print(greeting.text, flush=True)
    agent.end()


agent.run()
