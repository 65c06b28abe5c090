"""What a handshake cannot cost less than: its cryptography, and a call that does nothing over HTTP and over gRPC.

To be read beside `broker`. The echoes run in processes of their own, and what counts is their processor time, as there.
"""

import asyncio
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any

import grpc
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI, Request, Response

from attestation import es256
from attestation.evidence import MLKEM768_X25519
from attestation.sealing import SealingKey, seal_to
from benchmarks.bench_broker import AT_ONCE, Connection
from benchmarks.harness import Row, take_turns
from broker.app import listen
from enclave.client import Request as Call

CALLS = 94 * AT_ONCE
BODY = bytes(1024)
METHOD = "/floor.Echo/Say"
ROUNDS = 40


def rows() -> Iterator[Row]:
    yield _cryptography()
    yield _echo("a bare FastAPI echo of 1 KiB over loopback, per core", _serve_http, _call_http)
    yield _echo("a bare gRPC echo of 1 KiB over loopback, per core", _serve_grpc, _call_grpc)


def _cryptography() -> Row:
    """Attest to token and secret: quote and possession verified, challenge, token and release signed, secret sealed."""
    message = bytes(700)
    signer = ec.generate_private_key(ec.SECP256R1())
    signature = es256.sign(signer, message)
    spki = es256.dump_public(signer.public_key())
    sealing = SealingKey.generate(MLKEM768_X25519).public

    def once() -> None:
        for _ in range(2):
            es256.load_public.__wrapped__(spki)
            es256.verify(signer.public_key(), signature, message)
        for _ in range(3):
            es256.sign(signer, message)
        seal_to(MLKEM768_X25519, sealing, bytes(32), info=bytes(32))

    seconds = take_turns({"once": once}, rounds=ROUNDS)["once"]
    return Row(
        name="the cryptography of attest to token and secret: 2 verified, 3 signed, 1 sealed",
        figure=f"{seconds * 1e3:.2f} ms ({1 / seconds:,.0f}/s per core)",
        values={"seconds": seconds},
    )


def _echo(name: str, serve: Callable[[Pipe], None], call: Callable[[int], Any]) -> Row:
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    child.start()
    try:
        port = here.recv()
        asyncio.run(call(port))  # warm up
        assert child.pid is not None
        before = _processor_s(child.pid)
        asyncio.run(call(port))
        rate = CALLS / (_processor_s(child.pid) - before)
    finally:
        child.terminate()
        child.join(10)
    return Row(name=name, figure=f"{rate:,.0f}/s", values={"per_s": rate})


def _processor_s(pid: int) -> float:
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        main = int(file.read().split()[0])
    others = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        if int(task) != pid:
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                others += int(file.read().split()[0])
    return (main + others) / 1e9


def _serve_http(pipe: Pipe) -> None:
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    bound: socket.socket = listen("127.0.0.1", 0)
    pipe.send(bound.getsockname()[1])
    config = uvicorn.Config(app, log_level="critical", access_log=False)
    asyncio.run(uvicorn.Server(config).serve(sockets=[bound]))


async def _call_http(port: int) -> None:
    request = Call(method="POST", url=f"http://127.0.0.1:{port}/echo", headers={}, body=BODY, timeout_s=10.0)
    connections = [await Connection.open(f"http://127.0.0.1:{port}") for _ in range(AT_ONCE)]

    async def work(connection: Connection) -> None:
        for _ in range(CALLS // AT_ONCE):
            answer = await connection.exchange(request)
            assert answer.body == BODY

    await asyncio.gather(*map(work, connections))
    for connection in connections:
        connection.close()


def _serve_grpc(pipe: Pipe) -> None:
    async def run() -> None:
        async def say(request: bytes, _: Any) -> bytes:
            return request

        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(say)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor.Echo", {"Say": handler}),))
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


async def _call_grpc(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        say: Any = channel.unary_unary(METHOD)

        async def work() -> None:
            for _ in range(CALLS // AT_ONCE):
                assert await say(BODY) == BODY

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
