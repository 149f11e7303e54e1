"""`python -m mnist_ae.supervise ...`: run `python ...`, and end with it all that it started.

When make is told to stop, it tells what it started itself. What that started in turn trains on: under a shell, in a
kernel (which has a session of its own), in worker processes. So a supervisor stands between make and each long task.
"""

import os
import signal
import sys
import time
from contextlib import suppress

import psutil

PATIENCE = 1.0  # seconds that a task has to tidy up


def main(arguments: list[str]) -> int:
    """The exit status of `python ARGUMENTS`. On SIGINT, SIGTERM or SIGHUP, or when the parent is gone, the task gets
    SIGINT, and after PATIENCE it and all its descendants are killed: then 128 + the signal's number.

    >>> import subprocess
    >>> subprocess.run([sys.executable, "-m", "mnist_ae.supervise", "-c", "raise SystemExit(3)"]).returncode
    3
    """
    told: list[int] = []
    family: set[psutil.Process] = set()

    def tell(number: int, _: object) -> None:
        told.append(number)
        family.update(psutil.Process().children(recursive=True))  # now: what the task leaves has another parent

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, tell)
    parent, task = os.getppid(), psutil.Popen([sys.executable, *arguments])
    while task.poll() is None and not told:
        time.sleep(0.05)
        if os.getppid() != parent:
            tell(signal.SIGHUP, None)
    if not told:
        return task.returncode if task.returncode >= 0 else 128 - task.returncode
    if told[0] != signal.SIGINT:  # a terminal's Ctrl-C has reached it already
        with suppress(psutil.NoSuchProcess):
            task.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    for process in {*alive, *psutil.Process().children(recursive=True)}:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return 128 + told[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
