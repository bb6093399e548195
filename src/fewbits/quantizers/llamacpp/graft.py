"""Write a GGUF from another one with some tensors replaced: everything else is copied, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fewbits.core.errors import BackendError, SpecError, StoreError
from fewbits.core.files import current_umask, storage_error, sync_directory
from fewbits.quantizers.llamacpp.ggml_types import GgmlType
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.gguf_layout import alignment_of, bytes_as, grafted_bytes, grafted_header, padded

_CHUNK_BYTES = 4 * 1024 * 1024
# what copy_file_range says where it cannot do the job and plain reading can: another file system, an old kernel
_NOT_BY_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


@dataclass(frozen=True, slots=True)
class Replacement:
    """New data for a tensor: its type, and what writes exactly its bytes (called once, when the file has come that far)."""

    kind: GgmlType
    write: Callable[[BinaryIO], None]


def write_graft(source: GgufFile, replacements: Mapping[str, Replacement], output: Path) -> None:
    """Write `source` with these tensors replaced (tensor name -> data) to `output`, and read the result back.

    Raises `StoreError` (no space, no permission, source changed), `BackendError` (the new file is not what was asked for), and
    what a replacement raises; then nothing is left behind and an earlier `output` is untouched.
    """
    types = {name: replacement.kind.name for name, replacement in replacements.items()}
    with _whole_or_nothing(output) as temporary:
        with temporary.open("wb") as stream, source.path.open("rb") as original:
            stream.write(grafted_header(source, types))
            for tensor in source.tensors:
                begin = stream.tell()
                replacement = replacements.get(tensor.name)
                if replacement is None:
                    copy_range(original, source.header.data_start + tensor.offset, tensor.bytes, stream)
                    size = tensor.bytes
                else:
                    replacement.write(stream)
                    size = bytes_as(tensor, replacement.kind)
                if stream.tell() - begin != size:
                    message = f"{tensor.name} has {stream.tell() - begin} bytes instead of {size}"
                    raise BackendError("graft", message)
                stream.write(b"\0" * (padded(size, alignment_of(source)) - size))
        _verify(source, types, temporary)


def copy_range(source: BinaryIO, start: int, count: int, stream: BinaryIO) -> None:
    """Append `count` bytes of `source` from `start` on to `stream`, inside the kernel where it can. Raises `StoreError`."""
    stream.flush()
    end = start + count
    while start < end:
        try:
            done = os.copy_file_range(source.fileno(), stream.fileno(), end - start, start)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NOT_BY_KERNEL:
                raise
            done = stream.write(os.pread(source.fileno(), min(_CHUNK_BYTES, end - start), start))
            stream.flush()
        if done == 0:
            msg = f"{source.name} became shorter while it was being read. Wait until it is complete and try again."
            raise StoreError(msg)
        start += done
    # the kernel moved the descriptor; the buffered stream must learn of it
    stream.seek(0, os.SEEK_END)


def _verify(source: GgufFile, types: Mapping[str, str], written: Path) -> None:
    """Raise `BackendError` when the file differs from the plan in size, types or number of weights."""
    try:
        made = read_gguf(written)
    except SpecError as error:
        raise BackendError("graft", f"wrote a file that is not usable: {error.problems[0]}") from error
    expected = [(tensor.name, types.get(tensor.name, tensor.kind.name), tensor.shape) for tensor in source.tensors]
    found = [(tensor.name, tensor.kind.name, tensor.shape) for tensor in made.tensors]
    if found != expected:
        wrong = next((one for one, other in zip(found, expected, strict=False) if one != other), ("a tensor",))
        raise BackendError("graft", f"the new file is not what was asked for: {wrong[0]} differs")
    planned = grafted_bytes(source, types)
    if made.bytes != planned:
        raise BackendError("graft", f"the new file has {made.bytes} bytes instead of {planned}")


@contextlib.contextmanager
def _whole_or_nothing(output: Path) -> Iterator[Path]:
    """Give a temporary name beside `output`; flush and rename at the end, remove it when the block raises."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            # mkstemp makes private files
            temporary.chmod(0o666 & ~current_umask())
            temporary.replace(output)
            sync_directory(output.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise storage_error(output, error) from error
