"""Ray's direct transport (RDT) of tensors over Towline: NumPy's arrays, and PyTorch's tensors of the CPU.

    import numpy, ray, towline.ray

    towline.ray.register(numpy.ndarray)              # before the actors are made, in the process that makes them

    @ray.remote(enable_tensor_transport=True)
    class Source:
        @ray.method(tensor_transport="towline")
        def numbers(self):
            return numpy.arange(100_000_000)

The actor that gets the result fetches it from the actor that has made it: over shared memory on one host, else over
TCP. Ray's own object store is not involved. Ray's interface is young (alpha): this works with Ray 2.60.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, ClassVar

from ray.experimental.rdt import (
    CommunicatorMetadata,
    TensorTransportManager,
    TensorTransportMetadata,
    register_tensor_transport,
)
from ray.util import get_node_ip_address

from . import blocking
from .errors import Error

__all__ = ["TowlineTransport", "register"]

# Within so many seconds a peer answers, or the fetch fails.
_ANSWER_S = 30.0


def register(
    data_type: type, name: str = "towline", *, host: str | None = "127.0.0.1", token: bytes | None = None
) -> None:
    """Let Ray move values of ``data_type``, ``numpy.ndarray`` or ``torch.Tensor``, by ``tensor_transport=name``.

    By default actors reach each other on one host. For several, ``host=None`` lets each process listen at the address
    by which Ray knows its node. That needs a ``token``, a shared secret of 32 random bytes, which Ray hands to the
    actors together with their code.
    """
    # A class of this function's own: Ray sends it to the actors by value, and these two with it.
    configured = type("ConfiguredTransport", (TowlineTransport,), {"host": host, "token": token})
    register_tensor_transport(name, ["cpu"], configured, data_type)


@dataclass
class _Metadata(TensorTransportMetadata):
    """Where the tensors are."""

    address: str = ""


class TowlineTransport(TensorTransportManager):
    """What Ray calls, in the actors and in the process that has made them."""

    host: ClassVar[str | None] = "127.0.0.1"
    token: ClassVar[bytes | None] = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listener: blocking.Listener | None = None
        self._endpoint: blocking.Endpoint | None = None
        self._connections: dict[str, tuple[threading.Lock, blocking.Connection]] = {}
        self._objects: dict[str, list[Any]] = {}

    @property
    def tensor_transport_backend(self) -> str:
        """The name of the transport."""
        return "TOWLINE"

    @staticmethod
    def is_one_sided() -> bool:
        """The receiver alone starts a transfer."""
        return True

    @staticmethod
    def can_abort_transport() -> bool:
        """A transfer can be ended from either side."""
        return True

    def actor_has_tensor_transport(self, actor: Any) -> bool:
        """Every actor whose process can import this has it."""
        return True

    def extract_tensor_transport_metadata(self, obj_id: str, rdt_object: list[Any]) -> TensorTransportMetadata:
        """Keep the tensors for those that ask for them, and say where."""
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in rdt_object]
        self._objects[obj_id] = [_contiguous(tensor) for tensor in rdt_object]
        return _Metadata(shapes, "cpu", self._address())

    def get_communicator_metadata(
        self, src_actor: Any, dst_actor: Any, backend: str | None = None
    ) -> CommunicatorMetadata:
        """Nothing is needed besides the tensors' metadata."""
        return CommunicatorMetadata()

    def recv_multiple_tensors(
        self,
        obj_id: str,
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
        target_buffers: list[Any] | None = None,
    ) -> list[Any]:
        """Fetch the tensors from the process that has them."""
        assert isinstance(tensor_transport_metadata, _Metadata)
        if not tensor_transport_metadata.tensor_meta:
            return []
        address = tensor_transport_metadata.address
        lock, connection = self._connection(address)
        try:
            with lock:
                connection.send(obj_id.encode(), timeout=_ANSWER_S)
                message = connection.recv(timeout=_ANSWER_S)
        except BaseException:
            self._forget(address, connection)
            raise
        if message.header != obj_id.encode():
            raise KeyError(f"{address} has no object {obj_id}: its actor was restarted, or Ray has released it")
        tensors = [
            _tensor(frame, shape, dtype)
            for frame, (shape, dtype) in zip(message.frames, tensor_transport_metadata.tensor_meta, strict=True)
        ]
        for target, tensor in zip(target_buffers or [], tensors, strict=True) if target_buffers else ():
            target[...] = tensor
        return target_buffers or tensors

    def send_multiple_tensors(
        self,
        tensors: list[Any],
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
    ) -> None:
        """Ray does not call this: the receiver fetches."""
        raise NotImplementedError("the receiver fetches the tensors")

    def garbage_collect(
        self, obj_id: str, tensor_transport_meta: TensorTransportMetadata, tensors: list[Any]
    ) -> None:
        """Let go of tensors that nobody will ask for."""
        self._objects.pop(obj_id, None)

    def abort_transport(self, obj_id: str, communicator_metadata: CommunicatorMetadata) -> None:
        """End all fetches of this process: those that go on connect anew."""
        with self._lock:
            connections = [connection for _lock, connection in self._connections.values()]
            self._connections.clear()
        for connection in connections:
            connection.abort()

    def _to(self) -> blocking.Endpoint:
        if self._endpoint is None:
            self._endpoint = blocking.Endpoint(trust_user=True, token=self.token)
        return self._endpoint

    def _address(self) -> str:
        with self._lock:
            if self._listener is None:
                host = self.host or get_node_ip_address()
                self._listener = self._to().listen(f"towline://{host}:0", timeout=_ANSWER_S)
                threading.Thread(target=self._accept, args=(self._listener,), name="towline-ray", daemon=True).start()
            return self._listener.address

    def _accept(self, listener: blocking.Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except Error:
                return
            threading.Thread(target=self._serve, args=(connection,), name="towline-ray", daemon=True).start()

    def _serve(self, connection: blocking.Connection) -> None:
        """Answer each request, the name of an object, with its tensors, until the peer has gone."""
        with connection:
            while True:
                try:
                    name = bytes(connection.recv().header)
                    tensors = self._objects.get(name.decode(errors="replace"))
                    connection.send(b"" if tensors is None else name, tensors or [])
                except Error:
                    return

    def _connection(self, address: str) -> tuple[threading.Lock, blocking.Connection]:
        with self._lock:
            known = self._connections.get(address)
            if known is None:
                connection = self._to().connect(address, timeout=_ANSWER_S)
                known = self._connections[address] = threading.Lock(), connection
            return known

    def _forget(self, address: str, connection: blocking.Connection) -> None:
        with self._lock:
            known = self._connections.get(address)
            if known is not None and known[1] is connection:
                del self._connections[address]
        connection.abort()


def _contiguous(tensor: Any) -> Any:
    if hasattr(tensor, "contiguous"):
        return tensor.detach().contiguous()
    import numpy

    return numpy.ascontiguousarray(tensor)


def _tensor(frame: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    if type(dtype).__module__.partition(".")[0] == "torch":
        import torch

        # A tensor without elements has no memory to share.
        return torch.frombuffer(frame, dtype=dtype).reshape(shape) if len(frame) else torch.empty(shape, dtype=dtype)
    import numpy

    return numpy.frombuffer(frame, dtype=dtype).reshape(shape)
