"""The certificates of Dask's ``Security``."""

from __future__ import annotations

from typing import Any


def certificates(arguments: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
    """Return the PEM of the authority, the certificate and the key behind an ``ssl.SSLContext``."""
    raise TypeError(f"towlines:// is not there yet: {arguments.get('ssl_context')!r}")
