"""A command in a terminal of its own, as a person has it: keys that are typed become signals of its process group."""

import fcntl
import os
import select
import subprocess
import termios
import time
from contextlib import suppress

CTRL_C = b"\x03"


class Terminal:
    """Starts `command` on a new pseudo-terminal, and leads its session."""

    def __init__(self, command, **options):
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def read(self, timeout_s):
        """What arrives within the time goes to `text`; False when the terminal is closed."""
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return True
        try:
            block = os.read(self._ours, 65536)
        except OSError:  # the last process has closed its side
            return False
        self.text += block.decode(errors="replace")
        return bool(block)

    def wait_for(self, words, timeout_s):
        """Until the command has printed `words`."""
        deadline = time.monotonic() + timeout_s
        while words not in self.text:
            assert self.process.poll() is None and time.monotonic() < deadline, f"no {words!r} in\n{self.text}"
            self.read(0.2)

    def wait_until(self, is_so, timeout_s):
        """Until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            self.read(0.2)

    def type(self, keys):
        """As if a person pressed them."""
        os.write(self._ours, keys)

    def end(self, timeout_s):
        """The exit code, once the command has ended."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still runs after {timeout_s} s:\n{self.text}"
            if not self.read(0.2):
                time.sleep(0.05)
        while select.select([self._ours], [], [], 0.2)[0] and self.read(0):
            pass
        return self.process.returncode

    def close(self):
        """Ends what is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        os.close(self._ours)
