"""What messages are made of."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from . import _towline


class Message(NamedTuple):
    """A received message."""

    header: bytes
    """At most 64 KiB."""
    frames: list[_towline.Frame]
    """Writable memory, one allocation for each frame of 16 KiB and more."""


class SupportsDLPack(Protocol):
    """An object that exports a tensor, as those of PyTorch, JAX and NumPy do. Its memory is sent without a copy."""

    def __dlpack__(self) -> Any:
        """Return a capsule that has the tensor."""
