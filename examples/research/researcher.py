"""Opens sealed reports with a key that only this very code is given, and tells what they say.

Run it, in a lab's tenant: `cloister run examples/research/researcher.py --simulated`
"""

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


@agent.on_message(Question)
async def answer(ctx: Context, question: Question) -> Finding:
    key = await ctx.secrets.get(f"{ctx.tenant}/research/report-key")  # its labels mark everything sent from here on
    text = AESGCM(key.value).decrypt(question.report[:12], question.report[12:], b"").decode()
    return Finding(line=text.splitlines()[0], words=len(text.split()))


agent.run()
