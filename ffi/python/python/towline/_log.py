"""The library's events in Python's ``logging``: one logger for each of its modules, below ``towline``.

The level of the logger ``towline`` is read when the first endpoint is made. Events below it cost nothing.
"""

from __future__ import annotations

import logging

from ._towline import start_log, take_log

_logger = logging.getLogger("towline")
_is_started = False


def start() -> None:
    """Begin, at the first call."""
    global _is_started
    if not _is_started:
        _is_started = True
        start_log(min(_logger.getEffectiveLevel(), logging.ERROR))


def emit() -> None:
    """Log what was queued."""
    events, dropped = take_log()
    for level, name, text in events:
        logging.getLogger(name).log(level, "%s", text)
    if dropped:
        _logger.warning("%d events of the library were dropped: they came faster than the loop took them", dropped)
