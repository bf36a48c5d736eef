"""The blocking classes wait on their own thread, let others run, and end a wait at a timeout or a signal."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import towline
from links import SCHEMES, descriptors, until_now
from towline import RemoteRegion, blocking

LIMIT = 20.0


@contextmanager
def connected(
    address: str = "tcp://127.0.0.1:0", accept: dict[str, Any] | None = None
) -> Iterator[tuple[blocking.Connection, blocking.Connection]]:
    near_end = blocking.Endpoint()
    far_end = near_end if address.startswith("mem") else blocking.Endpoint()
    with far_end.listen(address, timeout=LIMIT) as listener, ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(listener.accept, timeout=LIMIT, **(accept or {}))
        near = near_end.connect(listener.address, timeout=LIMIT)
        far = accepted.result(LIMIT)
    try:
        yield near, far
    finally:
        near.abort()
        far.abort()
        near_end.close(timeout=LIMIT)
        far_end.close(timeout=LIMIT)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_messages_of_any_size_arrive(scheme: str) -> None:
    with connected(scheme) as (near, far), ThreadPoolExecutor(1) as threads:
        for size in 0, 10, 100_000, 32 << 20:
            content = bytearray(b"\x05" * size)
            sent = threads.submit(near.send, b"header", [content], timeout=LIMIT)
            message = far.recv(timeout=LIMIT)
            sent.result(LIMIT)
            # Nothing pins it any more.
            content.append(1)
            assert message.header == b"header" and bytes(message.frames[0]) == content[:-1]
            sent = threads.submit(near.send_packed, [b"a", content], timeout=LIMIT)
            assert [bytes(frame) for frame in far.recv_packed(timeout=LIMIT)] == [b"a", content]
            sent.result(LIMIT)
        assert near.path == far.path and "Explanation" in near.explain(timeout=LIMIT)


def test_announced_messages_and_regions() -> None:
    with connected(accept={"prefetch": None}) as (near, far), ThreadPoolExecutor(1) as threads:
        sent = threads.submit(near.send, b"into", [bytes(b"\x07" * 100_000)], timeout=LIMIT)
        incoming = far.incoming(timeout=LIMIT)
        into = bytearray(100_000)
        incoming.accept_into([into], timeout=LIMIT)
        sent.result(LIMIT)
        into.append(7)
        assert into == b"\x07" * 100_001

        with near.expose(into) as region:
            remote = RemoteRegion(bytes(region.remote))
            assert bytes(far.get(remote, timeout=LIMIT)) == into
            target = bytearray(2)
            far.get_into(remote, target, size=2, timeout=LIMIT)
            assert target == b"\x07\x07"
        into.append(1)
        with pytest.raises(towline.RejectedError):
            far.get(remote, timeout=LIMIT)
        writable = near.expose_writable(3)
        far.put(writable.remote, b"x", offset=1, timeout=LIMIT)
        assert bytes(writable.close(timeout=LIMIT) or b"") == b"\0x\0"


def test_a_timeout_ends_a_wait_and_loses_nothing() -> None:
    with connected() as (near, far):
        for timeout in 0, 0.05:
            start = time.monotonic()
            with pytest.raises(TimeoutError) as caught:
                far.recv(timeout=timeout)
            assert isinstance(caught.value, towline.TimedOutError)
            assert timeout <= time.monotonic() - start < timeout + 5
        near.send(b"late", timeout=LIMIT)
        assert far.recv(timeout=LIMIT).header == b"late"
        listener = blocking.Endpoint().listen("tcp://127.0.0.1:0", timeout=LIMIT)
        with pytest.raises(towline.TimedOutError):
            listener.accept(timeout=0.01)


def test_a_wait_lets_other_threads_run_and_their_calls_pass() -> None:
    with connected() as (near, far), ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(far.recv, timeout=LIMIT) for _ in range(4)]
        time.sleep(0.02)
        assert not any(call.done() for call in waiting)
        senders = [threads.submit(near.send, str(number).encode(), [bytes(50_000)]) for number in range(4)]
        for sender in senders:
            sender.result(LIMIT)
        headers = {call.result(LIMIT).header for call in waiting}
        assert headers == {b"0", b"1", b"2", b"3"}


def test_threads_leave_no_descriptor_and_no_object() -> None:
    class Pinned(bytearray):
        """A bytearray with weak references."""

    with connected(accept={"prefetch": None}) as (near, far):
        before = len(descriptors())
        content = Pinned(48 << 20)
        there = weakref.ref(content)

        def send_in_vain() -> None:
            with pytest.raises(towline.TimedOutError):
                near.send(b"", [content], timeout=0.01)

        for call in send_in_vain, *[lambda: far.closed] * 5:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join(LIMIT)
        del content
        # It is still sent.
        assert len(far.recv(timeout=LIMIT).frames[0]) == 48 << 20

        def released() -> bool:
            near.send(timeout=LIMIT)
            far.recv(timeout=LIMIT)
            return there() is None

        until_now(released, "the object is released")
        until_now(lambda: len(descriptors()) <= before, "the threads' descriptors are closed")


def test_a_lost_peer_ends_a_wait() -> None:
    with connected() as (near, far), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(far.recv)
        time.sleep(0.01)
        near.abort()
        with pytest.raises((towline.PeerLostError, towline.ClosedError)):
            waiting.result(LIMIT)
        until_now(lambda: far.closed, "the end is noticed")


INTERRUPTED = """
import signal
from towline import blocking
# A background job of a shell is started with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
endpoint = blocking.Endpoint()
with endpoint.listen("tcp://127.0.0.1:0") as listener:
    near = endpoint.connect(listener.address)
    far = listener.accept()
    print("waits", flush=True)
    try:
        far.recv(timeout=40)
    except KeyboardInterrupt:
        near.send(b"goes on")
        print(far.recv(timeout=10).header.decode(), flush=True)
"""


def test_ctrl_c_ends_a_wait_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waits\n"
        time.sleep(0.1)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        try:
            assert child.stdout.readline() == "goes on\n"
            assert time.monotonic() - start < 1
            assert child.wait(LIMIT) == 0
        finally:
            child.kill()


def test_a_forked_child_waits_on_its_own() -> None:
    with connected() as (near, _far):
        near.send(timeout=LIMIT)
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                with connected() as (here, there):
                    here.send(b"child", timeout=LIMIT)
                    code = 7 if there.recv(timeout=LIMIT).header == b"child" else 4
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        near.send(timeout=LIMIT)


@pytest.mark.parametrize("name", blocking.__all__)
def test_the_blocking_classes_have_the_same_calls(name: str) -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, lambda member: inspect.isfunction(member) or isinstance(member, property))
        return {
            method: list(inspect.signature(call).parameters) if inspect.isfunction(call) else []
            for method, call in methods
            if not method.startswith("_")
        }

    waiting = {
        method: [parameter for parameter in parameters if parameter != "timeout"]
        for method, parameters in calls(getattr(blocking, name)).items()
    }
    assert waiting == calls(getattr(towline, name))
