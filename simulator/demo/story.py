"""The story that the demo tells, one function for each step, in the order in which they are told.

Decides what is shown and which sentence goes with it. Nothing is staged for effect: agents are measured and run by
`cloister run`, the broker is the real one on loopback, refusals are its own, and what a step claims, it has checked.
"""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave.launch import stage
from enclave.trustfile import TrustFile
from simulator.demo import policy, vectors
from simulator.demo.narrator import Narrator
from simulator.demo.operator import LogExport, Operator
from simulator.demo.process import AgentProcess, DemoFailed, interruption
from simulator.lab import Lab
from simulator.machine import Machine

AGENTS: Final = Path(__file__).parent / "agents"
NAMES: Final = ("researcher", "analyst")
REPORT: Final = "Trial 7 stopped early: the drug works.\nSealed until the board has met.\n"
OUTDATED: Final = "policy.tcb_not_accepted"
WORD_THAT_CHANGES: Final = (b"exact", b"exacT")


@final
@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the steps share."""

    narrator: Narrator
    lab: Lab
    operator: Operator
    folder: Path
    code: Mapping[str, str]  # agent → SHA-384 of its measured copy
    key: bytes = field(repr=False)
    running: ExitStack

    @property
    def surroundings(self) -> list[str]:
        lab = self.lab
        return ["--machine", str(lab.machine_folder), "--broker", lab.broker_url, "--trust", str(lab.trust_file)]


def tell(narrator: Narrator, folder: Path) -> None:
    """The whole story. Raises DemoFailed when something did not happen as it must."""
    narrator.title("Cloister in one minute: nothing valuable goes to a program before it proves what it is.")
    real_quote(narrator)
    with ExitStack() as running:
        scene = set_up(narrator, folder, running)
        researcher, analyst, subjects = agents_attest(scene)
        key_is_released(scene, researcher)
        messages_are_sealed(scene, analyst)
        changed_agent_is_refused(scene)
        platform_falls_out_of_date(scene, analyst, subjects)
        export = scene.operator.export_log()
        running.close()
        log_is_verified(narrator, export, TrustFile.load(scene.lab.trust_file))
    narrator.summary(
        "two programs proved by hardware-style evidence what they are; a key went to one exact program on one exact "
        "machine, and messages that the broker in the middle cannot read; one changed byte, or a platform that missed "
        "its update, and every door was shut; and a log that nobody can rewrite says so. The trust domains here were "
        "simulated, so they protected nothing. On real hardware this still does not protect against a program that "
        "misuses what it was rightly given, against side channels and physical attacks on the processor, or against a "
        "host that simply switches it off."
    )


def real_quote(narrator: Narrator) -> None:
    narrator.step("real_quote", "Evidence from real hardware")
    found = vectors.find()
    if found is None:
        narrator.skipped("skipped: no recorded Intel quotes here (CLOISTER_VECTORS names a folder of them).")
        return
    narrator.say(
        "A processor with Intel TDX can vouch for a program: it signs a statement, called a quote, about what was "
        f"loaded into a sealed-off virtual machine, a trust domain. This one came from a real machine ({found.source})."
    )
    verified = found.verify()
    narrator.good(
        f"genuine: {len(verified.checks)} checks passed, up to Intel's own root key; the platform was "
        f"{verified.tcb_status} on {found.at:%d %B %Y}.",
        quote=found.name,
        tcb_status=str(verified.tcb_status),
        checks=len(verified.checks),
    )


def set_up(narrator: Narrator, folder: Path, running: ExitStack) -> Scene:
    narrator.step("set_up", "A machine, a broker, and a policy")
    for name in NAMES:
        shutil.copy(AGENTS / f"{name}.py", folder / f"{name}.py")
    code = {name: measure(folder / f"{name}.py") for name in NAMES}
    machine = Machine.create(folder / "machine")
    image = machine.launch("measure")
    measurements = {
        "mr_td": image.mr_td.hex(),
        "rtmr1": image.rtmrs[1].hex(),
        "rtmr2": image.rtmrs[2].hex(),
    }
    bundle = policy.bundle(ppid=machine.platform(0).ppid.hex(), measurements=measurements, code=code)
    with interruption.held():
        lab = running.enter_context(Lab(folder, bundle=bundle, tenant=policy.TENANT))
    key = AESGCM.generate_key(256)
    operator = Operator(lab.broker_url, lab.admin_key_file)
    operator.put_secret(policy.SECRET, key, labels=("research",))
    narrator.say(
        "This laptop has no such processor, so a simulated one stands in, with its own root key that nobody else "
        "trusts. A broker guards the secrets. Its policy names this one platform, fully patched, and two programs "
        "by the hash of their code and packages:"
    )
    for name in NAMES:
        narrator.quote(f"{name:<10} SHA-384 {code[name][:32]}…")
    narrator.good("the broker holds one secret: the key to a sealed research report.", code=code)
    return Scene(narrator=narrator, lab=lab, operator=operator, folder=folder, code=code, key=key, running=running)


def measure(agent: Path) -> str:
    with stage(agent) as staged:
        return staged.digest.hex()


def agents_attest(scene: Scene) -> tuple[AgentProcess, AgentProcess, set[str]]:
    narrator = scene.narrator
    narrator.step("attest", "Two agents prove what they are")
    narrator.say(
        "Each is copied, hashed, and the hash is locked into a register that can only be added to; then the copy "
        "runs, makes its keys inside the trust domain, has the broker prove by a quote of its own that it is the one "
        "in the trust file, and only then sends it a quote that covers all of this."
    )
    nonce = os.urandom(12)
    report = nonce + AESGCM(scene.key).encrypt(nonce, REPORT.encode(), b"")
    researcher = _agent(scene, "researcher")
    subjects = {"researcher": _admitted(scene, researcher)}
    analyst = _agent(scene, "analyst", b64encode(report).decode())
    subjects["analyst"] = _admitted(scene, analyst)
    narrator.good("both were admitted, each with a token that only its own key can use.", subjects=subjects)
    return researcher, analyst, set(subjects.values())


def _agent(scene: Scene, name: str, *arguments: str) -> AgentProcess:
    return _start(scene, scene.folder / f"{name}.py", *arguments)


def _start(scene: Scene, path: Path, *arguments: str) -> AgentProcess:
    with interruption.held():
        process = AgentProcess(path, surroundings=scene.surroundings, arguments=arguments)
        return scene.running.enter_context(process)


def _admitted(scene: Scene, agent: AgentProcess) -> str:
    event = agent.expect("admitted")
    if event["code"] != scene.code[agent.name]:
        raise DemoFailed(f"{agent.name} ran as {event['code']}, measured was {scene.code[agent.name]}")
    scene.narrator.quote(f"{agent.name:<10} is {event['subject']}")
    return str(event["subject"])


def key_is_released(scene: Scene, researcher: AgentProcess) -> None:
    narrator = scene.narrator
    narrator.step("release", "A key is released, to one of them")
    opened = researcher.expect("opened")
    narrator.say(
        f"The researcher asked for {opened['secret']}. The broker wrote the release into its log, then sealed the key "
        f"({opened['suite']}, safe against quantum computers too) so that only this trust domain can open it."
    )
    narrator.good(
        f"the researcher opened the report with it: {opened['bytes']} characters, inside its trust domain.",
        secret=opened["secret"],
        suite=opened["suite"],
    )


def messages_are_sealed(scene: Scene, analyst: AgentProcess) -> None:
    narrator = scene.narrator
    narrator.step("messages", "They talk, and the broker cannot listen")
    answer = analyst.expect("answered")
    narrator.say("The analyst's question and the researcher's answer went through the broker, sealed end to end:")
    narrator.quote(f"analyst heard: “{answer['line']}” ({answer['words']} words)")
    canaries = [REPORT.splitlines()[0].encode(), scene.key]
    searched = sum(_search(path, canaries) for path in (scene.lab.broker_folder, scene.folder / "broker.log"))
    narrator.good(
        f"searched all {searched:,} bytes that the broker wrote to database and log: neither that sentence nor the key "
        "is there.",
        answer=answer["line"],
        bytes_searched=searched,
    )


def _search(folder: Path, canaries: list[bytes]) -> int:
    """Bytes read. Raises DemoFailed when one of the canaries is found, in bytes, hex or base64."""
    forms = [form for one in canaries for form in (one, one.hex().encode(), b64encode(one).rstrip(b"="))]
    total = 0
    for path in [folder, *folder.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            total += len(content)
            if any(form in content for form in forms):
                raise DemoFailed(f"{path} holds what it must not")
    return total


def changed_agent_is_refused(scene: Scene) -> None:
    narrator = scene.narrator
    narrator.step("changed_agent", "The same agent with one byte changed")
    changed = scene.folder / "changed" / "researcher.py"
    changed.parent.mkdir()
    source = (scene.folder / "researcher.py").read_bytes()
    changed.write_bytes(source.replace(*WORD_THAT_CHANGES))
    differing = sum(a != b for a, b in zip(source, changed.read_bytes(), strict=True))
    if differing != 1:
        raise DemoFailed(f"{differing} bytes were changed, not one")
    process = _start(scene, changed)
    status = process.wait()
    if status != 1:
        raise DemoFailed(f"the changed agent ended with status {status}\n{process.words}")
    entry = scene.operator.entries("agent.refused")[-1]
    narrator.say("One letter in a comment. Its new hash is in its quote, and it cannot take it out again.")
    narrator.refused(", ".join(entry["codes"]), codes=entry["codes"], reasons=entry["reasons"])
    narrator.say(
        "The agent is told these codes and nothing else. The operator reads in the log why, and what would help:"
    )
    _tell_reasons(narrator, entry["reasons"])


def _tell_reasons(narrator: Narrator, reasons: list[str]) -> None:
    """The first reason of each code: the others say the same about other rules."""
    first = {reason.partition(":")[0]: reason for reason in reversed(reasons)}
    told = [reason for reason in reasons if reason in first.values()]
    for reason in told:
        narrator.quote(_shortened(reason))
    if len(told) < len(reasons):
        narrator.quote(f"… and {len(reasons) - len(told)} more of the same kind")


def _shortened(text: str) -> str:
    """Long hashes cut to what a reader compares."""
    return " ".join(
        f"{word[:16]}…{word[-1] if not word[-1].isalnum() else ''}" if len(word) >= 64 else word
        for word in text.split()
    )


def platform_falls_out_of_date(scene: Scene, analyst: AgentProcess, subjects: set[str]) -> None:
    narrator = scene.narrator
    narrator.step("out_of_date", "The platform misses a security update")
    narrator.say(
        "Weeks pass. A weakness becomes known, Intel publishes what a platform must have installed to count as up to "
        "date, and this machine has not installed it. The agents run on, unchanged."
    )
    machine = scene.lab.machine
    machine.recover("publish", what="platform", standard=True)
    machine.clock.advance(timedelta(days=40))
    if not scene.operator.refresh_collateral():
        raise DemoFailed("the broker's collateral did not change")
    refused = analyst.expect("refused")
    entries = scene.operator.wait_for_entries(subjects, OUTDATED, "agent.refused", "agent.quarantined")
    entry = entries[-1]
    narrator.refused(", ".join(dict.fromkeys(entry["codes"])), agent_was_told=refused["code"], codes=entry["codes"])
    narrator.say("Both had to prove themselves again, and neither is admitted any more. From the log:")
    _tell_reasons(narrator, entry["reasons"])


def log_is_verified(narrator: Narrator, export: LogExport, trust: TrustFile) -> None:
    narrator.step("audit", "The log is checked, without the broker")
    assert trust.log_key is not None
    size = export.verify(trust.log_key)
    kinds = Counter(str(json.loads(entry)["kind"]) for entry in export.entries)
    narrator.say(
        "The broker has stopped. Its log is a hash tree; all that a check needs is the trust file's public key:"
    )
    narrator.quote(", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())))
    try:
        export.with_changed_byte(size // 2).verify(trust.log_key)
    except DemoFailed:
        narrator.good(
            f"all {size} entries give the root hash that the broker signed; with one bit changed they do not.",
            entries=size,
            kinds=dict(kinds),
        )
        return
    raise DemoFailed("a changed log passed")
