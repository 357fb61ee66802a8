"""`python -m factory.llamacpp MODEL.gguf PORT SLOTS CONTEXT`: the embedded LLM server, in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    try:
        import xllamacpp
    except ImportError:
        sys.exit("xllamacpp is not installed: pip install 'bge-factory[llamacpp]', or use llm.serve: vllm or endpoint")
    model, port, slots, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.cache_prompt = (
        slots > 1
    )  # one slot is the reproducible mode: an answer must not depend on the request before
    params.cpuparams.n_threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    ended.wait()
    os._exit(0)  # the server's own shutdown waits for open requests


if __name__ == "__main__":
    main()
