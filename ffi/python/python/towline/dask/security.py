"""The certificates of Dask's ``Security``, which arrive as an ``ssl.SSLContext``."""

from __future__ import annotations

import ssl
import weakref
from typing import Any, NamedTuple

from _towline_certificates import notes


class Certificates(NamedTuple):
    """The contents of the files, in the PEM format."""

    authority: bytes
    certificate: bytes
    key: bytes


# The files are read once for each context, as Dask reads them once.
_read: weakref.WeakKeyDictionary[ssl.SSLContext, Certificates] = weakref.WeakKeyDictionary()


def certificates(arguments: dict[str, Any]) -> Certificates:
    """Return the certificates behind the ``ssl_context`` of a connector or listener.

    :raises TypeError: if there is no context, or if it is not known what it was made of.
    """
    context = arguments.get("ssl_context")
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(
            "TLS expects a `ssl_context` argument of type ssl.SSLContext (perhaps check your TLS configuration?)"
            f" Instead got {context!r}"
        )
    known = _read.get(context)
    if known is None:
        known = _read[context] = _certificates(context)
    return known


def _certificates(context: ssl.SSLContext) -> Certificates:
    note = notes.get(context)
    if note is None or note.authority is None or note.certificate is None or note.key is None:
        raise TypeError(
            "towlines:// needs the files of the certificates, and this ssl.SSLContext was not made by "
            "distributed.Security from an authority (ca-file) and a certificate: set distributed.comm.tls, or pass "
            "security=Security(tls_ca_file=…, …)"
        )
    if note.has_password:
        raise TypeError("towlines:// takes no encrypted keys: decrypt the key with `openssl pkey`")
    return Certificates(_content(note.authority), _content(note.certificate), _content(note.key))


def _content(source: str) -> bytes:
    if "\n" in source:
        return source.encode()
    with open(source, "rb") as file:
        return file.read()
