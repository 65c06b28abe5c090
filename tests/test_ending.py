"""A command that serves ends at the first signal, in whichever moment and thread it comes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from simulator.ending import Ending

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 60

# The signal is taken by a thread that is not the main one, while that waits.
ELSEWHERE = """
import signal, threading
from simulator.ending import Ending
with Ending() as ending:
    def other():
        waiting.wait(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    waiting = threading.Event()
    threading.Thread(target=other, daemon=True).start()
    ending.wait()
"""


def test_a_signal_that_another_thread_takes_is_heard() -> None:
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=ROOT, check=True, timeout=LIMIT_S)


def test_a_signal_that_came_before_the_wait_ends_it_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Ending() as ending:
        os.kill(os.getpid(), signal.SIGTERM)
        ending.wait()
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_signals_end_no_wait() -> None:
    heard = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.set())

    def send() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        heard.wait(LIMIT_S)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    try:
        with Ending() as ending:
            sender.start()
            ending.wait()
            sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard.is_set()
