"""Asks the researcher about a sealed report, once, and prints what comes back.

Run it, with the researcher running:
`cloister run examples/research/analyst.py --simulated -- "$(base64 -w0 REPORT.sealed)"`
"""

import sys
from base64 import b64decode
from dataclasses import dataclass

from enclave import Agent, Context

agent = Agent("analyst")


@dataclass
class Question:
    """A report sealed with AES-256-GCM: 12 bytes of nonce, then the ciphertext."""

    report: bytes


@dataclass
class Finding:
    line: str
    words: int


@agent.on_start
async def ask(ctx: Context) -> None:
    finding = await ctx.ask("researcher", Question(report=b64decode(sys.argv[1])), Finding)
    print(f"{finding.line} ({finding.words} words, labels {sorted(ctx.labels)})", flush=True)
    agent.end()


agent.run()
