"""The demo's analyst: asks the researcher about a sealed report, again and again, and says what came back."""

import asyncio
import json
import sys
from base64 import b64decode
from dataclasses import dataclass

from enclave import Agent, BrokerRefused, Context, EnclaveError

agent = Agent("analyst")


@dataclass
class Question:
    """A report sealed with AES-256-GCM: 12 bytes of nonce, then the ciphertext."""

    report: bytes


@dataclass
class Finding:
    line: str
    words: int


def tell(event: str, **facts: object) -> None:
    """One line of JSON for whoever watches this process."""
    print(json.dumps({"event": event, **facts}), flush=True)


@agent.on_start
async def ask(ctx: Context) -> None:
    tell("admitted", subject=ctx.verdict.subject, code=ctx.verdict.launches[-1].digest)
    question = Question(report=b64decode(sys.argv[1]))
    while True:
        try:
            finding = await ctx.ask("researcher", question, Finding, timeout_s=4.0)
            tell("answered", line=finding.line, words=finding.words)
        except BrokerRefused as refusal:
            tell("refused", code=refusal.code, reasons=list(refusal.reasons), remedy=refusal.remedy)
        except EnclaveError as error:
            tell("failed", code=error.code)
        await asyncio.sleep(0.5)


agent.run()
