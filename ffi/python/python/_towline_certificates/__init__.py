"""Notes which certificates each ``ssl.SSLContext`` of Dask was made of.

Dask gives its transports an ``SSLContext``, from which no key can be read, and makes it before it loads the transport.
So ``import dask`` loads this module, by an entry point of ``dask.sizeof``. It wraps two methods of ``SSLContext``,
which then note their arguments for as long as the context lives. It imports nothing of Towline and nothing of Dask, since
every program that imports Dask pays for it.

``Security.temporary()`` writes its certificates to a folder that is gone when the context is made. Of these files, and
of no others, the content is noted.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import weakref
from functools import wraps
from typing import Any

__all__ = ["Note", "notes", "register"]


class Note:
    """What a context was made of: each a path, or the text of a file in the PEM format."""

    __slots__ = ("authority", "certificate", "key", "has_password")

    def __init__(self) -> None:
        self.authority: str | None = None
        self.certificate: str | None = None
        self.key: str | None = None
        self.has_password = False


notes: weakref.WeakKeyDictionary[ssl.SSLContext, Note] = weakref.WeakKeyDictionary()

# The names that Dask gives to the files of a temporary certificate.
_TEMPORARY = frozenset({"dask.crt", "dask.pem"})


def register(_sizeof: Any) -> None:
    """Wrap the methods. Dask calls this when it is imported. A second call does nothing."""
    if hasattr(ssl.SSLContext.load_cert_chain, "__wrapped__"):
        return
    load_cert_chain = ssl.SSLContext.load_cert_chain
    load_verify_locations = ssl.SSLContext.load_verify_locations

    @wraps(load_cert_chain)
    def noting_certificate(
        self: ssl.SSLContext, certfile: Any, keyfile: Any = None, password: Any = None
    ) -> None:
        load_cert_chain(self, certfile, keyfile, password)
        note = notes.setdefault(self, Note())
        note.certificate = _noted(certfile)
        # The key may stand in the certificate's file.
        note.key = note.certificate if keyfile is None else _noted(keyfile)
        note.has_password = password is not None

    @wraps(load_verify_locations)
    def noting_authority(self: ssl.SSLContext, cafile: Any = None, capath: Any = None, cadata: Any = None) -> None:
        load_verify_locations(self, cafile, capath, cadata)
        authority = cadata if isinstance(cadata, str) else cafile
        if authority is not None:
            notes.setdefault(self, Note()).authority = _noted(authority)

    ssl.SSLContext.load_cert_chain = noting_certificate  # type: ignore[method-assign]
    ssl.SSLContext.load_verify_locations = noting_authority  # type: ignore[method-assign]


def _noted(source: Any) -> str:
    text = os.fsdecode(source)
    if os.path.basename(text) in _TEMPORARY and text.startswith(tempfile.gettempdir() + os.sep):
        with open(text, encoding="ascii") as file:
            return file.read()
    return text
