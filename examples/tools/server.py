"""A tool that other agents call: it searches a text that only this very code is given, and streams what it finds.

Run it, in a lab: `cloister run examples/tools/server.py --simulated`
What callers pin: `cloister run examples/tools/server.py --digest` is the code, `--tools` in its place what it says of
its tools.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from enclave import Agent, Allow, Context, Deny, ToolUse

agent = Agent("search")


@dataclass
class Search:
    word: str


@dataclass
class Hit:
    line: int
    text: str


@agent.tool(needs="tools/corpus", deadline_s=60, idempotent=True)
async def find(ctx: Context, wanted: Search) -> AsyncIterator[Hit]:
    """Find the lines of the corpus that hold a word."""
    corpus = await ctx.secrets.get(f"{ctx.tenant}/tools/corpus")
    for number, text in enumerate(corpus.text().splitlines(), 1):
        if wanted.word in text:
            yield Hit(line=number, text=text)  # sent as it is found; nobody takes it, and the search stops


@agent.before_tool
async def no_copies(ctx: Context, use: ToolUse) -> Allow | Deny:
    """Who asks for next to nothing is given next to everything."""
    return Allow() if len(use.arguments.word) > 1 else Deny("search.too_short")


agent.run()
