"""Process 1 of a simulated trust domain: starts the program, passes signals on, buries orphans, tells how it ended.

Run by `sandbox` as a file, in an interpreter without site packages: `init.py STATUS_FD MASK PROGRAM [ARGUMENT…]`. MASK
lists the signals that were blocked before the sandbox came, comma-separated; the program gets that mask. Signals that
the terminal sends reach the program by themselves, since it is in the same process group; those that a process sends
are passed on. STATUS_FD gets one line, `exit N` or `signal N`; when process 1 ends, the kernel kills what is left in
its namespace.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

PASSED_ON: Final = frozenset(
    (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
)
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126


def main(arguments: list[str]) -> int:
    """Returns the exit status for the supervisor: that of the program, or 128 and its signal."""
    status_fd, mask, program = int(arguments[0]), arguments[1], arguments[2:]
    os.set_inheritable(status_fd, False)
    watched = PASSED_ON | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        _become(program, mask)
    while True:
        received = signal.sigwaitinfo(watched)
        if received.si_signo == signal.SIGCHLD:
            ended = _bury(child)
            if ended is not None:
                word, number = ("exit", ended) if ended >= 0 else ("signal", -ended)
                os.write(status_fd, f"{word} {number}\n".encode())
                return ended if ended >= 0 else 128 - ended
        elif received.si_code <= 0:  # sent by a process, not by the terminal
            os.kill(child, received.si_signo)


def _bury(child: int) -> int | None:
    """Take note of all that have ended; the child's exit status, its signal as a negative number, or None."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)


def _become(program: list[str], mask: str) -> NoReturn:
    """What Python changed for itself is put back."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, {int(number) for number in mask.split(",") if number})
    try:
        os.execvp(program[0], program)  # noqa: S606 - a program without a shell is what this is for
    except OSError as error:
        print(f"cloister sim run: {program[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
