"""The smallest agent: it greets whoever asks. Run it with `cloister run examples/hello.py --simulated`."""

from dataclasses import dataclass

from enclave import Agent, Context

agent = Agent("hello")


@dataclass
class Greet:
    name: str


@dataclass
class Greeting:
    text: str


@agent.on_message(Greet)
async def greet(ctx: Context, message: Greet) -> Greeting:
    return Greeting(text=f"Hello {message.name}, from {ctx.verdict.subject}")


agent.run()
