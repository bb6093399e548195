"""Quantize one file through cyllama, in a process of its own: a bad tensor type aborts the whole process inside llama.cpp.

    python -m fewbits.quantizers.llamacpp.cyllama_worker SOURCE OUTPUT FTYPE THREADS [allow-requantize]

llama.cpp's log goes to stderr; exit code 0 only when the library said that the whole file was written.
"""

from __future__ import annotations

import sys

ALLOW_REQUANTIZE = "allow-requantize"


def main(words: list[str]) -> int:
    """Run one quantization and return the exit code."""
    from cyllama.llama import llama_cpp

    source, output, ftype, threads, *flags = words
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = int(ftype)
    parameters.nthread = int(threads)
    parameters.allow_requantize = ALLOW_REQUANTIZE in flags
    try:
        llama_cpp.model_quantize(source, output, parameters)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
