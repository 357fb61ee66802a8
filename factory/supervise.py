"""`python -m factory.supervise [--patience SECONDS] COMMAND…`: runs a server, or a training, and ends it and all that it
started when its starter is gone.

The starter holds the other end of standard input. However it ends, also by `kill -9`, that pipe closes; a server that is
still starting up would otherwise wait for its own processes, and hold a GPU's memory meanwhile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 5  # seconds between asking and killing; a training takes longer, since it saves a checkpoint


def main() -> int:
    for sign in (signal.SIGTERM, signal.SIGINT):  # sent to the whole group: the server has it, and its end is ours
        signal.signal(sign, lambda *_: None)
    patience, words = float(PATIENCE), sys.argv[1:]
    if words[0] == "--patience":
        patience, words = float(words[1]), words[2:]
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGTERM)
        time.sleep(patience)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    if code < 0:  # it was killed: end as it did
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
