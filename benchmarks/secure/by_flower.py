"""One host of an aggregation by Flower's SecAgg+: its clients' mod, or its server's workflow, and its own messages.

Runs with the Python of an environment that has ``flwr`` and none of this project's packages: Flower's requirements and
this project's exclude each other. Flower's workflow, mod, strategy and serialization are used as they are. In place of
its SuperLink and SuperNodes, which ask for messages every few seconds, each client has one TCP connection to the
server: what is measured is the protocol, and Flower is at an advantage.
"""

from __future__ import annotations

import importlib
import json
import socket
import sys
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.files import write_whole
from benchmarks.hosts.network import INTERFACE, interface_bytes
from benchmarks.secure.frames import receive, send

PORT = 29620
MEET_S = 60.0
POLL_S = 0.1
LIMIT_S = 1200.0
VALUE = 1e-3
"""Standard deviation of the values."""


def values_of(client: int, scalars: int) -> Any:
    """The vector of a client, shape (scalars,), float32, the same in every run."""
    numpy = importlib.import_module("numpy")
    return (VALUE * numpy.random.default_rng(client).standard_normal(scalars)).astype("float32")


def serve(plan: dict[str, Any]) -> dict[str, Any]:
    """The server: some aggregations with all clients.

    Returns:
        ``version`` of Flower; for each aggregation ``seconds`` and the bytes of its messages to and from each client;
        ``link_bytes`` that this host has received and sent in all of them; ``error``: largest difference between the
        last aggregate and the mean of the vectors, over their standard deviation.
    """
    numpy = importlib.import_module("numpy")
    with _connections(plan["clients"]) as connections, ThreadPoolExecutor(plan["clients"]) as threads:
        run = _Aggregations(plan, connections, threads)
        before, rows = interface_bytes(INTERFACE), [run.once(index + 1) for index in range(plan["aggregations"])]
        after = interface_bytes(INTERFACE)
        for connection in connections:
            send(connection, b"")
    vectors = [values_of(client, plan["scalars"]) for client in range(plan["clients"])]
    return {
        "version": importlib.import_module("importlib.metadata").version("flwr"),
        "seconds": [row["seconds"] for row in rows],
        "to_clients_bytes": [row["sent"] for row in rows],
        "from_clients_bytes": [row["received"] for row in rows],
        "link_bytes": [after[0] - before[0], after[1] - before[1]],
        "error": float(numpy.abs(run.mean() - numpy.mean(vectors, axis=0)).max()) / VALUE,
    }


class _Aggregations:
    """Flower's workflow and what it needs: a context, a strategy, proxies of the clients, and a grid of connections."""

    def __init__(self, plan: dict[str, Any], connections: list[socket.socket], threads: ThreadPoolExecutor) -> None:
        server, numpy = importlib.import_module("flwr.server"), importlib.import_module("numpy")
        self._app, self._common = importlib.import_module("flwr.app"), importlib.import_module("flwr.common")
        self._grid = _Grid(connections, threads)
        n, manager = plan["clients"], server.SimpleClientManager()
        task = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
        task.task_id = task.run_id = 1
        task.node_id = 0
        proxy = importlib.import_module("flwr.server.compat.grid_client_proxy").GridClientProxy
        for node in range(1, n + 1):
            manager.register(proxy(node, self._grid, 1))
        strategy = server.strategy.FedAvg(fraction_fit=1.0, min_fit_clients=n, min_available_clients=n)
        plain = self._app.Context(1, 0, {}, self._app.RecordDict(), {}, 0)
        self._context = server.LegacyContext(plain, server.ServerConfig(1), strategy, manager)
        self._keep(numpy.zeros(plan["scalars"], dtype="float32"))
        # All clients hold a share of each other's keys, and more than half restore them; a weight is 1, so that the
        # default of 1000 would take three digits from every value.
        workflow = server.workflow.SecAggPlusWorkflow
        self._workflow = workflow(num_shares=1.0, reconstruction_threshold=0.67, max_weight=1.0, timeout=LIMIT_S)

    def once(self, number: int) -> dict[str, Any]:
        """One aggregation."""
        self._context.state.config_records["config"] = self._app.ConfigRecord({"current_round": number})
        self._grid.sent, self._grid.received = [0] * self._grid.clients, [0] * self._grid.clients
        start_s = time.perf_counter()
        self._workflow(self._grid, self._context)
        seconds = time.perf_counter() - start_s
        if self._grid.stages != 4 * number:
            raise RuntimeError(f"Flower ended aggregation {number} after {self._grid.stages - 4 * (number - 1)} stages")
        return {"seconds": seconds, "sent": self._grid.sent, "received": self._grid.received}

    def mean(self) -> Any:
        """The last aggregate, shape (scalars,)."""
        compat = importlib.import_module("flwr.compat.common.recorddict_compat")
        record = self._context.state.array_records["parameters"]
        return self._common.parameters_to_ndarrays(compat.arrayrecord_to_parameters(record, keep_input=True))[0]

    def _keep(self, values: Any) -> None:
        compat = importlib.import_module("flwr.compat.common.recorddict_compat")
        parameters = self._common.ndarrays_to_parameters([values])
        self._context.state.array_records["parameters"] = compat.parameters_to_arrayrecord(parameters, keep_input=True)


class _Grid:
    """What Flower's workflow asks of a grid: messages to clients, and their replies, each on its own connection.

    Attributes:
        clients: Number of clients; client i is node i + 1.
        sent: Bytes of messages to each client since they were last reset.
        received: Bytes of their replies.
        stages: Number of times that messages were sent.
    """

    def __init__(self, connections: list[socket.socket], threads: ThreadPoolExecutor) -> None:
        self._connections, self._threads = connections, threads
        self.clients, self.stages = len(connections), 0
        self.sent, self.received = [0] * self.clients, [0] * self.clients

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Send all messages and wait for all replies."""
        self.stages += 1
        return list(self._threads.map(self._exchange, messages))

    def _exchange(self, message: Any) -> Any:
        client = message.metadata.dst_node_id - 1
        payload = _packed(message)
        send(self._connections[client], payload)
        reply = receive(self._connections[client])
        self.sent[client] += len(payload)
        self.received[client] += len(reply)
        return _unpacked(reply)


def take_part(plan: dict[str, Any]) -> dict[str, Any]:
    """A client: answers the server's messages with Flower's mod until it says goodbye; returns its link's bytes."""
    app = importlib.import_module("flwr.app")
    mod = importlib.import_module("flwr.client.mod").secaggplus_mod
    values = values_of(plan["client"], plan["scalars"])
    context = app.Context(1, plan["client"] + 1, {}, app.RecordDict(), {}, 0)

    def fitted(message: Any, _: Any) -> Any:
        return _fitted(message, values)

    with _connected(plan["server"]) as connection:
        _quick(connection)
        send(connection, str(plan["client"]).encode())
        before = interface_bytes(INTERFACE)
        while payload := receive(connection):
            send(connection, _packed(mod(_unpacked(payload), context, fitted)))
        after = interface_bytes(INTERFACE)
    return {"link_bytes": [after[0] - before[0], after[1] - before[1]]}


def _fitted(message: Any, values: Any) -> Any:
    """What a client answers that has trained on one sample."""
    app, common = importlib.import_module("flwr.app"), importlib.import_module("flwr.common")
    compat = importlib.import_module("flwr.compat.common.recorddict_compat")
    status = common.Status(common.Code.OK, "")
    result = common.FitRes(status, common.ndarrays_to_parameters([values]), 1, {})
    return app.Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def _packed(message: Any) -> bytes:
    serde = importlib.import_module("flwr.common.serde")
    return serde.message_to_proto(message).SerializeToString()


def _unpacked(payload: bytes) -> Any:
    proto = importlib.import_module("flwr.proto.message_pb2").Message.FromString(payload)
    return importlib.import_module("flwr.common.serde").message_from_proto(proto)


@contextmanager
def _connections(clients: int) -> Generator[list[socket.socket]]:
    """The server's connections, in order of client."""
    found: dict[int, socket.socket] = {}
    with ExitStack() as opened, socket.create_server(("", PORT)) as door:
        door.settimeout(MEET_S)
        while len(found) < clients:
            connection = opened.enter_context(door.accept()[0])
            _quick(connection)
            found[int(receive(connection))] = connection
        yield [found[client] for client in range(clients)]


def _connected(server: str) -> socket.socket:
    deadline_s = time.monotonic() + MEET_S
    while True:
        try:
            return socket.create_connection((server, PORT), MEET_S)
        except ConnectionRefusedError:  # it has not started yet
            if time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)


def _quick(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(LIMIT_S)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = serve(given) if given["client"] == given["clients"] else take_part(given)
    write_whole(Path(given["answer"]), json.dumps(found))
