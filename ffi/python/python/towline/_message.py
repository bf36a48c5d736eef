"""Received messages."""

from __future__ import annotations

from typing import NamedTuple

from . import _towline


class Message(NamedTuple):
    """A received message."""

    header: bytes
    """At most 64 KiB."""
    frames: list[_towline.Frame]
    """Writable memory, one allocation for each frame of 16 KiB and more."""
