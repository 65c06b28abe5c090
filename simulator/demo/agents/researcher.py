"""The demo's researcher: opens sealed reports with a key that only this exact code is given."""

import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave import Agent, Context

agent = Agent("researcher")


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
async def started(ctx: Context) -> None:
    tell("admitted", subject=ctx.verdict.subject, code=ctx.verdict.launches[-1].digest)


@agent.on_message(Question)
async def answer(ctx: Context, question: Question) -> Finding:
    key = await ctx.secrets.get(f"{ctx.tenant}/research/report-key")
    text = AESGCM(key.value).decrypt(question.report[:12], question.report[12:], b"").decode()
    tell("opened", secret=key.name, version=key.version, suite=ctx.verdict.suite, bytes=len(text))
    return Finding(line=text.splitlines()[0], words=len(text.split()))


agent.run()
