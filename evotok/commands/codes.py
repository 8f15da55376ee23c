"""Files of codes: safetensors with `codes` (I, N, D) uint16, names of images, and the tokenizer's fingerprint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evotok.commands.files import check_file, new_files


if TYPE_CHECKING:
    import numpy as np

FORMAT = "evotok-codes-1"


class Codes(NamedTuple):
    """Codes of images (I, N, D) uint16, a name for each image, and the hash of the tokenizer."""

    codes: "np.ndarray"
    names: list[str]
    tokenizer: str


def write_codes(path: str | Path, content: Codes) -> None:
    """Writes a file of codes atomically.

    Raises:
        ValueError: `path` is a folder.
    """
    from safetensors.numpy import save_file

    path = check_file(path)
    metadata = {"format": FORMAT, "tokenizer": content.tokenizer, "names": json.dumps(content.names)}
    with new_files(path.parent, overwrite=True) as reserve:
        save_file({"codes": content.codes}, reserve(path.name), metadata=metadata)


def read_codes(path: str | Path) -> Codes:
    """Reads a file of codes.

    Raises:
        ValueError: no such file, or not what `write_codes` writes.
    """
    from safetensors import SafetensorError, safe_open

    from evotok.data.errors import reason

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. `evotok encode` writes files of codes.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path}: not a file of codes. `evotok encode` writes them.")
            content = Codes(file.get_tensor("codes"), json.loads(metadata["names"]), metadata["tokenizer"])
    except (SafetensorError, KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: incomplete or damaged file of codes ({reason(error, 120)}): encode the images again."
        ) from None
    codes, names = content.codes, content.names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: its names are no list of texts: encode the images again.")
    if codes.dtype != "uint16" or codes.ndim != 3 or not codes.size or len(codes) != len(names):
        raise ValueError(
            f"{path}: {codes.dtype} codes of shape {codes.shape} with {len(names)} names; a file of codes has "
            "uint16 codes (images, positions, levels) and a name for each image."
        )
    return content
