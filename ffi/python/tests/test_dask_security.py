"""Encrypted comms: ``towlines://`` takes the certificates of Dask's ``Security``, and refuses bad peers."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster, Security
from distributed.comm import CommClosedError, connect, listen
from distributed.comm.core import FatalCommClosedError

import towline
from certificates import Authority, Identity

TIMEOUT = 20


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "cluster")


@pytest.fixture(params=["tcp", None], ids=["over-tcp", "fastest"])
def transport(request: pytest.FixtureRequest) -> Any:
    with dask.config.set({"towline.transport": request.param}):
        yield request.param


def security(authority: Authority, identity: Identity) -> Security:
    roles = {
        f"tls_{role}_{part}": value
        for role in ("client", "scheduler", "worker")
        for part, value in (("cert", identity.certificate), ("key", identity.key))
    }
    return Security(tls_ca_file=authority.certificate, require_encryption=True, **roles)


async def echo(comm: Any) -> None:
    try:
        while True:
            await comm.write(await comm.read())
    except CommClosedError:
        pass


async def exchange(server: Security, client: Security, scheme: str = "towlines") -> dict[str, Any]:
    """Connect to a listener with its own certificates, and return how the connection is encrypted."""
    async with listen("towlines://127.0.0.1:0", echo, **server.get_listen_args("scheduler")) as listener:
        address = listener.contact_address.replace("towlines", scheme)
        connecting = connect(address, timeout=TIMEOUT, **client.get_connection_args("client"))
        comm = await asyncio.wait_for(connecting, TIMEOUT)
        await comm.write({"x": b"1" * 100_000})
        assert (await comm.read())["x"] == b"1" * 100_000
        await comm.close()
        return dict(comm.extra_info)


def test_files_of_security_are_used(authority: Authority, transport: str | None) -> None:
    ours = security(authority, authority.sign("host"))
    info = asyncio.run(exchange(ours, ours))
    assert info == ({"path": "tcp", "encryption": "tls"} if transport else {"path": "mem", "encryption": "local"})


def test_a_temporary_certificate_is_used(transport: str | None) -> None:
    ours = Security.temporary()
    assert asyncio.run(exchange(ours, ours))["path"] == (transport or "mem")


def test_the_key_may_be_in_the_file_of_the_certificate(authority: Authority, tmp_path: Path) -> None:
    identity = authority.sign("host")
    both = tmp_path / "both.pem"
    both.write_text(Path(identity.certificate).read_text() + Path(identity.key).read_text())
    roles = {f"tls_{role}_cert": str(both) for role in ("client", "scheduler", "worker")}
    ours = Security(tls_ca_file=authority.certificate, **roles)
    assert asyncio.run(exchange(ours, ours))["path"] == "mem"


def test_the_configuration_of_dask_is_used(authority: Authority) -> None:
    identity = authority.sign("host")
    keys = {"distributed.comm.tls.ca-file": authority.certificate, "towline.transport": "tcp"}
    for role in ("client", "scheduler", "worker"):
        keys[f"distributed.comm.tls.{role}.cert"] = identity.certificate
        keys[f"distributed.comm.tls.{role}.key"] = identity.key
    with dask.config.set(keys):
        ours = Security()
        assert asyncio.run(exchange(ours, ours))["encryption"] == "tls"


def test_a_cluster_with_nannies_is_encrypted() -> None:
    ours = Security.temporary()
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(protocol="towlines", security=ours, **options) as cluster, Client(cluster) as client:
        addresses = list(cluster.scheduler.workers)
        assert all(address.startswith("towlines://") for address in addresses)
        part = client.submit(bytes, 1_000_000, workers=addresses[:1])
        assert client.submit(len, part, workers=addresses[1:]).result(timeout=TIMEOUT) == 1_000_000


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("of another authority", "authority"),
        ("expired", "expired"),
        ("of version 1", "-extfile"),
        ("self-signed", "self-signed"),
    ],
)
def test_a_bad_certificate_is_refused_with_a_remedy(
    authority: Authority, tmp_path: Path, fault: str, remedy: str
) -> None:
    good = security(authority, authority.sign("host"))
    identity = {
        "of another authority": lambda: Authority(tmp_path, "other").sign("stranger"),
        "expired": lambda: authority.sign("old", days=-1),
        "of version 1": lambda: authority.sign_version_1("ancient"),
        "self-signed": lambda: Authority(tmp_path, "lone").self_signed(),
    }[fault]()
    bad = security(authority, identity)
    with dask.config.set({"towline.transport": "tcp"}):
        for server, client in ((good, bad), (bad, good)):
            with pytest.raises((FatalCommClosedError, ValueError)) as failure:
                asyncio.run(exchange(server, client))
            assert remedy in str(failure.value), "the text says what to do"


def test_a_missing_key_is_refused_with_a_remedy(authority: Authority) -> None:
    certificate = Path(authority.sign("host").certificate).read_bytes()
    with pytest.raises(towline.InvalidError, match="private key cannot be read: .*BEGIN PRIVATE KEY"):
        towline.Tls(certificate=certificate)


def test_a_plain_peer_is_refused(authority: Authority) -> None:
    ours = security(authority, authority.sign("host"))
    plain = Security(require_encryption=False)
    for transport in (None, "tcp"):
        with dask.config.set({"towline.transport": transport}), pytest.raises(FatalCommClosedError) as failure:
            asyncio.run(exchange(ours, plain, scheme="towline"))
        assert "tls" in str(failure.value).lower()


def test_plain_addresses_are_refused_where_encryption_is_required() -> None:
    ours = Security.temporary()

    async def refused() -> None:
        with pytest.raises(RuntimeError, match="encryption required"):
            await connect("towline://127.0.0.1:1", timeout=1, **ours.get_connection_args("client"))
        with pytest.raises(RuntimeError, match="encryption required"):
            await listen("towline://127.0.0.1:0", echo, **ours.get_listen_args("scheduler"))

    asyncio.run(refused())


def test_a_context_of_unknown_origin_is_refused_with_a_remedy() -> None:
    async def refused(arguments: dict[str, Any], text: str) -> None:
        with pytest.raises(TypeError, match=text):
            await connect("towlines://127.0.0.1:1", timeout=1, **arguments)

    asyncio.run(refused({}, "ssl_context"))
    asyncio.run(refused({"ssl_context": ssl.create_default_context()}, "Security"))
