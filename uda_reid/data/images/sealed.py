"""The door through which a target passes without its labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor

from uda_reid.data.images.photographs import MAPPED_ABOVE, Photographs
from uda_reid.errors import DataError, UnreadableError
from uda_reid.run import QUIET
from uda_reid.types import JUNK, Domain, Split, Target

_UNNAMED = "an image of the target cannot be read any more; `uda-reid data check` names it"

_FILES: dict[int, Photographs] = {}
"""What the sealed objects read, by their ids. In the module and not in them: nothing that a strategy is handed, no
attribute, closure or weak reference, leads from the images to their file names, which tell identities."""


class _Sealed:
    """Images without a way back to their files."""

    __slots__ = ("_length",)

    def __init__(self, photographs: Photographs) -> None:
        self._length = len(photographs)
        _FILES[id(self)] = photographs

    def __len__(self) -> int:
        return self._length

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        """Return images as `Photographs.read` does; errors name no files, nor do their frames."""
        try:
            return _FILES[id(self)].read(rows, height, width)
        except UnreadableError as error:
            unreadable = error.rows
        except MemoryError:
            unreadable, told = (), None
        except Exception as error:
            unreadable = ()
            told = (
                str(error)
                if isinstance(error, DataError)
                else f"images cannot be read ({type(error).__name__}: {error})"
            )
        # New ones, outside: the frames of the old one hold the file names.
        if unreadable:
            raise UnreadableError(_UNNAMED, unreadable)
        if told is None:
            raise MemoryError
        raise DataError(_UNNAMED if any(str(path) in told for path in _FILES[id(self)]._paths) else told)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self  # the images do not change, and a copy would have none

    def __reduce__(self) -> str:
        raise TypeError("a target's images stay in their process: their file names are not to leave it")

    def __del__(self) -> None:
        files = globals().get("_FILES")  # may be gone when the interpreter ends
        if files:
            files.pop(id(self), None)


def unlabelled(
    domain: Domain,
    *,
    cameras: bool = False,
    cache_bytes: int = 4 << 30,
    mapped_above: int = MAPPED_ABOVE,
    log: Callable[[str], None] = QUIET.log,
) -> Target:
    """Return a domain's training images without identities and file names: all that a strategy may see.

    Args:
        domain: the domain to adapt to.
        cameras: hand out the camera numbers too; only for a strategy that declares that it needs them.
        cache_bytes: memory for decoded images, in bytes.
        mapped_above: more bytes of decoded images than this are read from the file that a `preload` of the domain's
            training images has made, where there was one in this process.
        log: is told in one line that this file is damaged, as `Run.log` is.

    Returns:
        The images in the order that `target_order` gives; `cams` (N,) int64 where asked for, else None.

    Raises:
        DataError: cameras are asked for and the domain has none.
    """
    train, order = domain.train, target_order(len(domain.train))
    cams = None
    if cameras:
        if train.cams is None:
            raise DataError(
                f"{domain.name}: the strategy needs camera numbers and this domain has none; "
                "give them in its manifest or choose a strategy that does without"
            )
        cams = torch.from_numpy(train.cams.astype(np.int64))[order]
    unknown = np.full(len(train), JUNK)
    shuffled = Split(tuple(train.paths[row] for row in order.tolist()), unknown, None)
    photographs = Photographs(shuffled, name=domain.name, cache_bytes=cache_bytes, mapped_above=mapped_above, log=log)
    return Target(domain.name, _Sealed(photographs), cams)


def target_order(count: int) -> Tensor:
    """Return which row of `domain.train` stands at each row of its target: a fixed shuffle of `count` rows.

    Files are mostly sorted by identity, so in their own order neighbouring rows would give identities away. An auditor
    needs this order to compare pseudo-labels with identities; a strategy has no use for it.

    Args:
        count: number of training images.

    Returns:
        (count,) int64, the same for every call.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))
