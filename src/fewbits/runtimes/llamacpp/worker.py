"""The child process that hosts llama.cpp's server from the prebuilt wheel, for machines without a `llama-server` program.

`python -m fewbits.runtimes.llamacpp.worker '{"model": ..., "alias": ..., "threads": ..., ...}'`. The first line on
stdout is one JSON object with `listening` (the loopback address, port chosen by the OS); the log goes to stderr. Lives until
it is killed. Imports nothing of fewbits: its memory is measured as the model's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def main() -> int:
    """Load the model, announce the address, wait. Exit code 1 when the model cannot be loaded."""
    options = json.loads(sys.argv[1])
    # the library prints to fd 1 as it likes; the announcement must be the only thing there
    announce = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import xllamacpp

    server = _start(xllamacpp, options)
    announce.write(json.dumps({"listening": server.listening_address}) + "\n")
    announce.close()
    while True:
        signal.pause()


def _start(xllamacpp: Any, options: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.model_alias = {options["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = 1
    params.n_ctx = options["context_size"]
    params.n_batch = params.n_ubatch = options["batch_size"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.ctx_shift = False
    params.ui = False
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"worker: {error}")


if __name__ == "__main__":
    sys.exit(main())
