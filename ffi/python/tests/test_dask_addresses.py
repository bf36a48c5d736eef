"""Claims: listeners listen where Dask asks, and both ends agree on the addresses."""

from __future__ import annotations

import errno
import socket

import dask
import pytest
from dask_support import Accepting, asynchronous, transport
from distributed.comm import (
    connect,
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    resolve_address,
)
from distributed.comm.addressing import parse_host_port
from distributed.utils import get_ip, get_ipv6

__all__ = ["transport"]


def location(address: str) -> tuple[str, int]:
    scheme, _, rest = address.partition("://")
    assert scheme == "towline"
    host, port = parse_host_port(rest)
    return host, port


@pytest.mark.parametrize(
    ("host", "dialled"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("localhost", "localhost")]
)
@asynchronous
async def test_a_host_is_listened_at(transport: str, host: str, dialled: str) -> None:
    async with Accepting(f"towline://{host}:0") as accepting:
        at, port = location(accepting.listener.listen_address)
        assert at == {"[::1]": "::1"}.get(host, "127.0.0.1") and port > 0
        assert accepting.listener.contact_address == accepting.listener.listen_address
        near, far = await accepting.pair(dialled)
        await near.write("over")
        assert await far.read() == "over"
        await near.close()
        await far.close()


@pytest.mark.parametrize(
    ("host", "listened", "contact", "dialled"),
    [
        ("", None, get_ip, ["127.0.0.1", "[::1]"]),
        ("0.0.0.0", "0.0.0.0", get_ip, ["127.0.0.1"]),
        ("[::]", "::", get_ipv6, ["[::1]"]),
    ],
)
@asynchronous
async def test_a_wildcard_is_listened_at(  # type: ignore[no-untyped-def]
    transport, host, listened, contact, dialled
) -> None:
    async with Accepting(f"towline://{host}:0") as accepting:
        at, port = location(accepting.listener.listen_address)
        assert listened is None or at == listened
        assert location(accepting.listener.contact_address) == (contact(), port)
        for address in dialled:
            near, far = await accepting.pair(address)
            assert (near.local_address, near.peer_address) == (far.peer_address, far.local_address)
            assert location(near.peer_address) == (address.strip("[]"), port)
            await near.close()
            await far.close()


@asynchronous
async def test_a_wildcards_contact_address_is_the_one_given(transport: str) -> None:
    async with Accepting("towline://:0", default_host="127.0.0.1") as accepting:
        assert location(accepting.listener.contact_address) == ("127.0.0.1", accepting.port)
    with dask.config.set({"towline.contact-host": "127.0.0.2"}):
        async with Accepting("towline://:0") as accepting:
            assert location(accepting.listener.contact_address) == ("127.0.0.2", accepting.port)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@asynchronous
async def test_addresses_of_both_ends_mirror_each_other(transport: str, host: str) -> None:
    async with Accepting(f"towline://{host}:0") as accepting:
        near, far = await accepting.pair(host)
        assert near.peer_address == far.local_address == accepting.listener.contact_address
        assert near.local_address == far.peer_address
        assert location(near.local_address)[1] not in (0, accepting.port)
        await near.close()
        await far.close()


@asynchronous
async def test_a_listener_that_never_started_has_no_address() -> None:
    listener = Accepting("towline://127.0.0.1:0").listener
    with pytest.raises(ValueError, match="non-started"):
        listener.listen_address  # noqa: B018
    listener.stop()


@asynchronous
async def test_a_port_in_use_is_told_by_errno(transport: str) -> None:
    async with Accepting("towline://127.0.0.1:0") as accepting:
        with pytest.raises(OSError) as failed:
            await Accepting(f"towline://127.0.0.1:{accepting.port}").listener.start()
        assert failed.value.errno == errno.EADDRINUSE


@asynchronous
async def test_a_port_that_another_program_uses_is_told_by_errno() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(OSError) as failed:
            await Accepting(f"towline://127.0.0.1:{other.getsockname()[1]}").listener.start()
        assert failed.value.errno == errno.EADDRINUSE


@asynchronous
async def test_a_port_can_be_listened_at_again(transport: str) -> None:
    async with Accepting("towline://127.0.0.1:0") as accepting:
        near, far = await accepting.pair()
        port = accepting.port
        await near.close()
        await far.close()
    for _ in range(3):
        async with Accepting(f"towline://127.0.0.1:{port}") as accepting:
            near, far = await accepting.pair()
            assert accepting.port == port
            await near.close()
            await far.close()


@asynchronous
async def test_nobody_listening_is_tried_again_until_the_timeout(transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        await connect(f"towline://127.0.0.1:{port}", timeout=0.5)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", "127.0.0.1:port"])
@asynchronous
async def test_a_bad_address_is_a_value_error(address: str) -> None:
    with pytest.raises(ValueError):
        await connect(f"towline://{address}", timeout=20)


def test_addresses_are_taken_apart() -> None:
    assert get_address_host("towline://127.0.0.1:7000") == "127.0.0.1"
    assert get_address_host_port("towline://[::1]:7000") == ("::1", 7000)
    assert resolve_address("towline://localhost:7000") == "towline://127.0.0.1:7000"
    assert get_local_address_for("towline://127.0.0.1:7000") == "towline://127.0.0.1"
    assert get_local_address_for("towline://[::1]:7000") == "towline://[::1]"
