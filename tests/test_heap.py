"""What was freed is kept for what comes next."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from broker.wire.heap import keep_freed

def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        buffers = [bytes(1 << 18) for _ in range(8)]
        del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

before = faults()
print(keep_freed(), before, (faults(), faults())[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_buffers_that_were_freed_are_not_got_from_the_kernel_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    took, before, after = done.stdout.split()
    assert took == "True"
    assert int(after) < int(before) // 10
