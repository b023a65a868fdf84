"""Whether weight files can be what they say: header and length alone, so that terabytes take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

from llmdistill.preflight.facts import WeightFile

_LARGEST_HEADER = 100_000_000
_LFS = b"version https://git-lfs"


def weight_files(folder: Path) -> tuple[WeightFile, ...]:
    """The files of weights of a model folder, and those that its index names but that are not there."""
    paths = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("pytorch_model*.bin"))]
    found = [WeightFile(path.name, path.stat().st_size, fault(path)) for path in paths]
    names = {file.name for file in found}
    index = folder / "model.safetensors.index.json"
    if index.is_file() and found:
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
            return (*found, WeightFile(index.name, index.stat().st_size, f"cannot be read: {error!r}"))
        found += [WeightFile(name, 0, "is named in the index and is not there") for name in sorted(named - names)]
    return tuple(found)


def fault(path: Path) -> str:
    """Why a file of weights cannot be loaded, in words; empty where header and length fit.

    Of PyTorch's own format only pointers and empty files are known without loading it.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(64)
        if head.startswith(_LFS):
            return f"is a Git LFS pointer of {size} bytes and not the file itself"
        length = int.from_bytes(head[:8], "little")
        if size < 8:
            return f"has {size} bytes and no header"
        if path.suffix != ".safetensors":
            return ""
        if length > min(size - 8, _LARGEST_HEADER):
            return (
                f"says that its header has {length} bytes, and it has {size} bytes in all: cut, or no safetensors file"
            )
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            end = max((said["data_offsets"][1] for name, said in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, UnicodeDecodeError) as error:
            return f"has a header that cannot be read: {type(error).__name__}"
    expected = 8 + length + end
    return "" if size == expected else f"is cut or too long: expected {expected} bytes, found {size}"
