"""What stands beside our messages: the cryptography alone, NATS JetStream by nats-py, plain grpcio streaming."""

import asyncio
import hashlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.harness import PartMissing
from broker.wire.channel import FrameHeader, nonce, shape_of
from broker.wire.jose import es256_sign, es256_valid

SIZE, BATCH = 1024, 128
MESSAGES = 30_000
NATS = "nats-server"


def bare_crypto() -> float:
    """Seconds for one message: sealed, chained, opened, and its part of a batch's signature."""
    cipher, key, channel = AESGCM(os.urandom(32)), ec.generate_private_key(ec.SECP256R1()), os.urandom(16)
    shape, text, numbers = shape_of("note", ()), bytes(SIZE), range(1, BATCH + 1)
    headers = [FrameHeader(channel, n, 1, 2, shape).to_bytes() for n in numbers]

    def batch() -> None:
        bodies = [cipher.encrypt(nonce(n), text, header) for n, header in zip(numbers, headers, strict=True)]
        raw = b"".join(headers) + b"".join(bodies)
        signature = es256_sign(key, hashlib.sha256(raw).digest())
        assert es256_valid(key.public_key(), signature, hashlib.sha256(raw).digest())
        for n, header, body in zip(numbers, headers, bodies, strict=True):
            cipher.decrypt(nonce(n), body, header)

    times = []
    for _ in range(50):
        start = time.thread_time()
        batch()
        times.append(time.thread_time() - start)
    return sorted(times)[len(times) // 2] / BATCH


# ── two workers and a start signal ─────────────────────────────────────────────────────────────────────────────────


def _pair(receive: Callable[..., None], send: Callable[..., None], *args: Any) -> float:
    """Messages a second, from the first send until the receiver has seen the end."""
    spawn = multiprocessing.get_context("spawn")
    pipes = []
    for act in (receive, send):
        ours, theirs = spawn.Pipe()
        spawn.Process(target=act, args=(theirs, *args), daemon=True).start()
        if ours.recv() != "ready":
            raise RuntimeError("a worker did not get ready")
        pipes.append(ours)
    for pipe in pipes:
        pipe.send("go")
    ended, begun = (pipe.recv() for pipe in pipes)
    return MESSAGES / float(ended - begun)


def _go(pipe: Connection) -> float:
    pipe.send("ready")
    pipe.recv()
    return time.monotonic()


# ── JetStream ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def nats_server(*, always: bool) -> Iterator[str]:
    """A server with a file store; with `always`, each write is synced before it is acknowledged."""
    program = shutil.which(NATS) or shutil.which(NATS, path="/usr/sbin:/usr/local/bin")
    if program is None:
        raise PartMissing(f"{NATS}: install Debian's package of that name")
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = Path(folder) / "nats.conf"
        sync = ", sync_interval: always" if always else ""
        config.write_text(f'listen: 127.0.0.1:{port}\njetstream {{ store_dir: "{folder}/store"{sync} }}\n')
        log = subprocess.DEVNULL
        with subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=subprocess.PIPE) as server:
            try:
                yield _listening(server, port)
            finally:
                server.terminate()


def _listening(server: "subprocess.Popen[bytes]", port: int) -> str:
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return f"nats://127.0.0.1:{port}"
    assert server.stderr is not None
    raise PartMissing(f"{NATS} that takes the configuration: {server.stderr.read().decode()[-80:].strip()}")


def jetstream(url: str) -> float:
    """Messages a second through a work queue, from publication until the queue is empty."""
    asyncio.run(_queue(url))
    return _pair(_nats_receive, _nats_send, url)


async def _queue(url: str) -> None:
    import nats
    from nats.js.api import RetentionPolicy, StorageType

    client = await nats.connect(url)
    await client.jetstream().add_stream(
        name="box", subjects=["box"], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE
    )
    await client.close()


def _nats_send(pipe: Connection, url: str) -> None:
    async def work() -> None:
        import nats

        client = await nats.connect(url)
        stream = client.jetstream(publish_async_max_pending=1024)
        begun, text = _go(pipe), bytes(SIZE)
        for _ in range(MESSAGES):
            await stream.publish_async("box", text)
        await stream.publish_async_completed()
        pipe.send(begun)
        await client.close()

    asyncio.run(work())


def _nats_receive(pipe: Connection, url: str) -> None:
    async def work() -> None:
        import nats

        client = await nats.connect(url)
        stream = client.jetstream()
        pull = await stream.pull_subscribe("box", durable="reader")
        _go(pipe)
        left = MESSAGES
        while left:
            for message in await pull.fetch(min(256, left), timeout=30):
                await message.ack()
                left -= 1
        while (await stream.stream_info("box")).state.messages:  # noqa: ASYNC110  # nothing tells when it is empty
            await asyncio.sleep(0.002)
        pipe.send(time.monotonic())
        await client.close()

    asyncio.run(work())


# ── plain gRPC ─────────────────────────────────────────────────────────────────────────────────────────────────────


def plain_grpc() -> float:
    """Messages a second from one stream through a server to another, one by one, neither sealed nor kept."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=_forward, args=(theirs,), daemon=True)
    server.start()
    try:
        return _pair(_plain_receive, _plain_send, ours.recv())
    finally:
        server.terminate()


def _forward(pipe: Connection) -> None:
    async def work() -> None:
        between: asyncio.Queue[bytes] = asyncio.Queue(4096)

        async def put(_: object, context: Any) -> None:
            while isinstance(raw := await context.read(), bytes):
                await between.put(raw)

        async def take(_: object, context: Any) -> None:
            while True:
                await context.write(await between.get())

        put_handler: Any = grpc.stream_stream_rpc_method_handler(put)
        take_handler: Any = grpc.stream_stream_rpc_method_handler(take)
        server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler("plain.Mail", {"Put": put_handler, "Take": take_handler})
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(port)
        await server.wait_for_termination()

    asyncio.run(work())


def _plain_send(pipe: Connection, port: int) -> None:
    async def work() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.stream_stream("/plain.Mail/Put")()
            begun, text = _go(pipe), bytes(SIZE)
            for _ in range(MESSAGES):
                await call.write(text)
            await call.done_writing()
            await call.code()
            pipe.send(begun)

    asyncio.run(work())


def _plain_receive(pipe: Connection, port: int) -> None:
    async def work() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.stream_stream("/plain.Mail/Take")()
            _go(pipe)
            for _ in range(MESSAGES):
                await call.read()
            pipe.send(time.monotonic())
            call.cancel()

    asyncio.run(work())
