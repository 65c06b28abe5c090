"""A tool that other agents call: it searches a text that only this very code is given, and streams what it finds.

Run it, in a lab: `cloister run examples/tools/server.py --simulated`
What callers pin: `cloister run examples/tools/server.py --digest`
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from enclave import Agent, Context

agent = Agent("search")


@dataclass
class Search:
    word: str


@dataclass
class Hit:
    line: int
    text: str


@agent.on_message(Search, deadline_s=60)
async def search(ctx: Context, wanted: Search) -> AsyncIterator[Hit]:
    corpus = await ctx.secrets.get(f"{ctx.tenant}/tools/corpus")
    for number, text in enumerate(corpus.text().splitlines(), 1):
        if wanted.word in text:
            yield Hit(line=number, text=text)  # sent as it is found; nobody takes it, and the search stops


agent.run()
