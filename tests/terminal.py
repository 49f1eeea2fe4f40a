"""Python in a terminal of its own, to be typed at.

``Terminal(*arguments, cwd=..., env=...)``
    starts the interpreter. To be used in a ``with`` statement, which kills it.
``expect(text)``
    waits until ``text`` is printed, gives what was printed before it.
``enter(line, prompt)``
    types a line, waits for the next prompt, gives what was printed in between.
``interrupt()``, ``send_signal(number)``
    types Ctrl-C, sends a signal, as soon as the main thread waits for something.
``end()``
    waits until it has ended, gives the rest and the exit code.

Nothing depends on how long something takes: what is typed next is a reply to
what was printed. ``TIMEOUT`` is for programs that hang.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

TIMEOUT = 40
CTRL_C = "\x03"
CTRL_D = "\x04"
# To run a test on.
LOOPS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("asyncio", "uvloop", "trio")
]
ASYNCIO_LOOPS = LOOPS[:2]
# Ctrl-C's echo is left out as well: it comes before or after the program's reply.
LEFT_OUT = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r|\^C")


def _take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    def __init__(self, *arguments, cwd, env):
        self.file, inner = pty.openpty()
        attributes = termios.tcgetattr(inner)
        attributes[1] &= ~termios.ONLCR  # "\n" stays one character
        termios.tcsetattr(inner, termios.TCSANOW, attributes)
        self.attributes = termios.tcgetattr(inner)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=env,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(inner)
        self.output = ""  # printed since the last expect()
        self.transcript = ""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.file)

    def type(self, text):
        os.write(self.file, text.encode())

    def enter(self, line, prompt):
        self.type(line + "\n")
        self.expect(line + "\n")  # the echo
        return self.expect(prompt)

    def interrupt(self):
        self._wait_for_system_call()
        self.type(CTRL_C)

    def send_signal(self, number):
        self._wait_for_system_call()
        self.process.send_signal(number)

    def _wait_for_system_call(self):
        # A signal that comes just before a system call does not interrupt it.
        status = Path(f"/proc/{self.process.pid}/stat")
        deadline = time.monotonic() + TIMEOUT
        while status.exists() and status.read_text().rpartition(") ")[2][0] != "S":
            if time.monotonic() > deadline:
                raise TimeoutError("the program does not wait")

    def expect(self, text):
        deadline = time.monotonic() + TIMEOUT
        while text not in self.output:
            if not self._read(deadline):
                raise EOFError(f"ended without {text!r}:\n{self.transcript!r}")
        before, _, self.output = self.output.partition(text)
        return before

    def end(self):
        deadline = time.monotonic() + TIMEOUT
        while self._read(deadline):
            pass
        rest, self.output = self.output, ""
        return rest, self.process.wait(TIMEOUT)

    def _read(self, deadline):
        """Read what is there or will be; False at the end."""
        left = max(0, deadline - time.monotonic())
        if not select.select([self.file], [], [], left)[0]:
            raise TimeoutError(f"not printed; what was printed:\n{self.transcript!r}")
        try:
            data = os.read(self.file, 4096)
        except OSError:  # Linux: the program has closed the terminal
            return False
        self.transcript += data.decode(errors="replace")
        self.output = LEFT_OUT.sub("", self.output + data.decode(errors="replace"))
        return bool(data)
