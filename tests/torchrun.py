"""Several processes on this machine, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def torchrun(count: int, *command: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """What ``count`` processes of ``python command`` said; one is no torchrun."""
    start: list[str] = []
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={port}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *start, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        try:
            said = child.communicate(timeout=seconds)
        finally:
            child.terminate()  # so that torchrun ends the others, too
    return subprocess.CompletedProcess(child.args, child.returncode, *said)
