"""Keys as people write them."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rockbed.errors import InvalidConfig
from rockbed.server.cli_errors import WrongUsage

if TYPE_CHECKING:
    from rockbed.types import I64

_NUMBER = re.compile(r"[+-]?(?:[0-9]+|0[xX][0-9a-fA-F]+)")
STDIN = Path("-")


def key_of(text: str) -> int:
    """-2^63 to 2^64-1, decimal or 0x hexadecimal. Raises ValueError, with what is wrong."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no key: keys are whole numbers, decimal or 0x hexadecimal")
    return checked(int(text, 16 if "x" in text.lower() else 10))


def checked(key: int) -> int:
    """The key, if it is one. Raises ValueError."""
    if not -(2**63) <= key < 2**64:
        raise ValueError(f"{key} is no key: keys have 64 bits, -2^63 to 2^64-1")
    return key


def array_of(keys: Iterable[int]) -> "I64":
    """int64[n] bit patterns."""
    import numpy as np

    return np.array([key % 2**64 for key in keys], np.uint64).view(np.int64)


def keys_typed(texts: Iterable[str]) -> list[int]:
    """Keys of the command line. Raises WrongUsage."""
    try:
        return [key_of(text) for text in texts]
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def keys_in(file: Path) -> list[int]:
    """The keys of a .npy file (int64[n] or uint64[n]), or of a text with one a line; "-" is stdin.

    Raises InvalidConfig.
    """
    if file.suffix == ".npy":
        return _keys_in_npy(file)
    keys = []
    for number, line in lines_of(file):
        try:
            keys.append(key_of(line))
        except ValueError as error:
            raise InvalidConfig(f"{file}, line {number}: {error}") from None
    return keys


def lines_of(file: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers; "-" is stdin. Raises InvalidConfig."""
    try:
        text = sys.stdin.read() if file == STDIN else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{file} cannot be read: {error}") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _keys_in_npy(file: Path) -> list[int]:
    import numpy as np

    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidConfig(f"{file} is no .npy file that can be read: {error}") from None
    if array.dtype not in (np.dtype(np.int64), np.dtype(np.uint64)) or array.ndim != 1:
        raise InvalidConfig(f"{file} holds {array.dtype}{list(array.shape)}: give int64[n] or uint64[n]")
    keys: list[int] = array.tolist()
    return keys
