"""Calls the search tool, but only if it is the code whose digest is given here, and says of its tool what was approved:
a host cannot slip in another, and the tool cannot become another one unseen.

Run it, with the server running:
`cloister run examples/tools/caller.py --simulated -- "$(cloister run examples/tools/server.py --digest)" WORD`
"""

import sys
from dataclasses import dataclass

from attestation import Verdict
from enclave import Agent, CloisterError, Context

APPROVED = "7f863b97ec478c02a8623bc8e43c7d7b25766ca52a64eea3a370a1d12f330850"


def is_the_tool(verdict: Verdict) -> bool:
    """The image that this agent runs in too, and in it that code and no other. Asked about everyone who is sent
    something or sends something, whatever the broker's policy says."""
    own = agent.verdict
    same_image = (verdict.mr_td, *verdict.rtmrs[1:3]) == (own.mr_td, *own.rtmrs[1:3])
    return same_image and verdict.only_launches and [launch.digest for launch in verdict.launches] == [sys.argv[1]]


agent = Agent("caller", peers=is_the_tool)


@dataclass
class Search:
    word: str


@dataclass
class Hit:
    line: int
    text: str


@agent.on_start
async def call(ctx: Context) -> None:
    find = ctx.tool("search", "find", digest=APPROVED)
    try:
        async for hit in find.stream(Search(word=sys.argv[2]), Hit):
            print(f"{hit.line}: {hit.text}", flush=True)
    except CloisterError as error:
        print(error.code, flush=True)
    print(f"labels {sorted(ctx.labels)}", flush=True)
    agent.end()


agent.run()
