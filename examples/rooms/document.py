"""A document that several people edit at once: the server for y-partyserver's and y-partykit's providers, unmodified.

    pip install pycrdt
    torpor serve examples/rooms/document.py
    new YProvider("127.0.0.1:8787", "notes", new Y.Doc())      // y-partyserver/provider, room "notes"

The document is one row of the room's storage, written two seconds after a change; the room stays in memory until then.
What a kill -9 takes in between, clients bring back: a room that wakes asks all of them. Cursors and names (awareness)
lie with each connection, 16 KiB at most, and end with it. A connection with `?mode=view` reads only: a real one would
ask a token, as in members.py, and override `is_read_only`.
"""

import json
import resource
from typing import NamedTuple

from pycrdt import Doc, TransactionEvent

from objects.ports import Frame, UpgradeRequest
from partykit_compat import Connection, Server

SYNC, AWARENESS = 0, 1
STEP_1, STEP_2, UPDATE = 0, 1, 2
BATCH = "y-pk-batch#"
MAX_DOCUMENT_BYTES = 8 * 1024 * 1024
MAX_BATCHES_BYTES = 4 * MAX_DOCUMENT_BYTES  # of all connections, as announced
MAX_WAITING_BYTES = MAX_DOCUMENT_BYTES  # of updates whose predecessors have not come: they are in no snapshot
MAX_DEPTH = 100  # of values in values
SAVE_AFTER_S = 2.0

# pycrdt recurses for types in types, up to 300 bytes for each 7 of a document, and a stack that ends ends the process.
STACK_BYTES = 512 << 20
_, most = resource.getrlimit(resource.RLIMIT_STACK)
resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES if most == resource.RLIM_INFINITY else most, most))


class Malformed(Exception):
    """A frame that is not of the Yjs protocol."""


class Reader:
    """Reads lib0's encoding: integers of 7 bits a byte, the low ones first, and bytes after their length."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def uint(self) -> int:
        value = 0
        for shift in range(0, 56, 7):  # JavaScript's integers have 53 bits
            if self.at >= len(self.data):
                break
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Malformed("an integer that does not end")

    def count(self) -> int:
        """An integer that says how many follow, a byte each at least."""
        value = self.uint()
        if value > len(self.data) - self.at:
            raise Malformed("more than there is room for")
        return value

    def skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self.data):
            raise Malformed("shorter than it says")

    def bytes(self) -> bytes:
        length = self.uint()
        self.at += length
        if self.at > len(self.data):
            raise Malformed("shorter than it says")
        return self.data[self.at - length : self.at]


def uint(value: int) -> bytes:
    """Encode an integer."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def sized(data: bytes) -> bytes:
    """Put the length before bytes."""
    return uint(len(data)) + data


def check_update(update: bytes) -> None:
    """Refuse what pycrdt should not see: it makes room for as many as a count says, and recurses into values."""
    reader = Reader(update)
    for _ in range(reader.count()):
        structs = reader.count()
        reader.uint(), reader.uint()  # client and clock
        for _ in range(structs):
            check_struct(reader)
    for _ in range(reader.count()):  # what is deleted
        reader.uint()
        for _ in range(reader.count()):
            reader.uint(), reader.uint()


def check_struct(reader: Reader) -> None:
    """Read one item of a document, by the number of its content (Yjs: structs/Item.js)."""
    info = reader.data[reader.at] if reader.at < len(reader.data) else 255
    reader.skip(1)
    if info in (0, 10):  # collected, or left out
        reader.uint()
        return
    for side in (0x80, 0x40):
        if info & side:
            reader.uint(), reader.uint()
    if not info & 0xC0:
        if reader.uint():
            reader.bytes()
        else:
            reader.uint(), reader.uint()
        if info & 0x20:
            reader.bytes()
    match info & 31:
        case 1:
            reader.uint()
        case 2:
            for _ in range(reader.count()):
                reader.bytes()
        case 3 | 4 | 5:
            reader.bytes()
        case 6:
            reader.bytes(), reader.bytes()
        case 7:
            kind = reader.uint()
            if kind == 3:
                reader.bytes()
            elif kind not in (0, 1, 2, 4, 6):
                raise Malformed("a type that is not taken")
        case 8:
            for _ in range(reader.count()):
                check_value(reader, MAX_DEPTH)
        case 9:
            reader.bytes()
            check_value(reader, MAX_DEPTH)
        case _:
            raise Malformed("a content that is not taken")


def check_value(reader: Reader, depth: int) -> None:
    """Read one value of lib0's `any`."""
    if not depth:
        raise Malformed("values too deep in values")
    tag = reader.data[reader.at] if reader.at < len(reader.data) else 0
    reader.skip(1)
    match tag:
        case 127 | 126 | 121 | 120:
            pass
        case 125:
            reader.uint()
        case 124:
            reader.skip(4)
        case 123 | 122:
            reader.skip(8)
        case 119 | 116:
            reader.bytes()
        case 118 | 117:
            for _ in range(reader.count()):
                if tag == 118:
                    reader.bytes()
                check_value(reader, depth - 1)
        case _:
            raise Malformed("no value")


class Presence(NamedTuple):
    """What one Yjs client says about itself."""

    clock: int
    state: str  # JSON; "null" once it is gone


def awareness_frame(clients: dict[int, Presence]) -> bytes:
    """Make the frame that tells what clients say about themselves."""
    entries = [uint(client) + uint(one.clock) + sized(one.state.encode()) for client, one in clients.items()]
    return uint(AWARENESS) + sized(uint(len(entries)) + b"".join(entries))


def read_awareness(body: bytes) -> dict[int, Presence]:
    """Read the body of such a frame."""
    reader = Reader(body)
    clients = {}
    for _ in range(reader.uint()):
        client, clock = reader.uint(), reader.uint()
        try:
            state = reader.bytes().decode()
            json.loads(state)
        except (ValueError, RecursionError) as error:
            raise Malformed("a state that is no JSON") from error
        clients[client] = Presence(clock, state)
    return clients


class Batch:
    """A message that y-partykit's provider sends in pieces of 1 MB, between two text frames."""

    def __init__(self, marker: dict[str, object]) -> None:
        size = marker.get("size")
        if not isinstance(size, int) or not 0 < size <= MAX_DOCUMENT_BYTES:
            raise Malformed("a batch of a size that is not taken")
        self.id, self.size = marker.get("id"), size
        self.data = bytearray()
        self.count = 0

    def add(self, piece: bytes) -> None:
        self.count += 1
        if len(self.data) + len(piece) > self.size:
            raise Malformed("a batch larger than it said")
        self.data += piece

    def end(self, marker: dict[str, object]) -> bytes:
        if (marker.get("id"), marker.get("size"), marker.get("count")) != (self.id, len(self.data), self.count):
            raise Malformed("a batch that does not end as it began")
        return bytes(self.data)


class Document(Server):
    ordered = True

    async def on_start(self) -> None:
        self.ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY, document BLOB)")
        self.document: Doc = Doc()
        self.bytes = 0  # of the last snapshot and what came since
        self.waiting = 0  # bytes that changed nothing: known ones, and those whose predecessors have not come
        self.saving = False
        self.batches: dict[Connection, Batch] = {}
        self.changes: list[bytes] = []
        self.document.observe(self.changed)
        for row in self.ctx.storage.sql.exec("SELECT document FROM snapshot").to_array():
            self.document.apply_update(row["document"])
            self.bytes = len(row["document"])
        self.changes.clear()
        self.present: dict[int, tuple[Presence, Connection]] = {}  # each with the connection that told it last
        for connection in self.get_connections():
            for client, (clock, state) in (connection.state or {}).items():
                if client not in self.present or clock > self.present[client][0].clock:
                    self.present[client] = Presence(clock, state), connection
            connection.send(self.step_1())

    def is_read_only(self, connection: Connection) -> bool:
        return "mode=view" in connection.uri.partition("?")[2].split("&")

    async def on_connect(self, connection: Connection, request: UpgradeRequest) -> None:
        connection.send(self.step_1())
        if self.present:
            connection.send(awareness_frame({client: one for client, (one, _) in self.present.items()}))

    async def on_message(self, connection: Connection, message: Frame) -> None:
        try:
            frame = self.unbatched(connection, message)
            if frame is not None:
                self.receive(connection, Reader(frame))
        except Malformed:
            self.batches.pop(connection, None)  # and nothing else: clients of other versions may send more than we know

    async def on_close(self, connection: Connection, code: int, reason: str, was_clean: bool) -> None:
        self.left(connection)

    async def on_error(self, connection: Connection, error: str) -> None:
        self.left(connection)

    def receive(self, connection: Connection, reader: Reader) -> None:
        kind = reader.uint()
        if kind == AWARENESS:
            self.hear(connection, read_awareness(reader.bytes()))
        elif kind == SYNC:
            step, body = reader.uint(), reader.bytes()
            if step == STEP_1:
                connection.send(bytes([SYNC, STEP_2]) + sized(self.missing(body)))
            elif step in (STEP_2, UPDATE) and not self.is_read_only(connection):
                self.apply(connection, body)

    def step_1(self) -> bytes:
        return bytes([SYNC, STEP_1]) + sized(self.document.get_state())

    def missing(self, state: bytes) -> bytes:
        Reader(state).count()
        try:
            return self.document.get_update(state)
        except ValueError as error:
            raise Malformed("no state vector") from error

    def apply(self, connection: Connection, update: bytes) -> None:
        if self.bytes + len(update) > MAX_DOCUMENT_BYTES:
            connection.close(1009, "the document is full")
            return
        check_update(update)
        try:
            self.document.apply_update(update)
        except (ValueError, RuntimeError) as error:  # pycrdt raises either
            raise Malformed("no update") from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # what it cannot be imported as
                raise
            self.renew()
            raise Malformed("an update that pycrdt cannot take") from error
        for change in self.changes:  # none if all of it was known
            self.bytes += len(change)
            self.broadcast(bytes([SYNC, UPDATE]) + sized(change))
            self.save_soon()
        self.waiting += max(0, len(update) - sum(map(len, self.changes)))
        self.changes.clear()
        if self.waiting > MAX_WAITING_BYTES:
            self.renew()

    def renew(self) -> None:
        """Make the document anew of what it has, without what waits for its predecessors; clients bring that again."""
        known = self.document.get_update()
        self.document = Doc()
        self.document.apply_update(known)
        self.document.observe(self.changed)
        self.changes.clear()
        self.waiting = 0
        self.broadcast(self.step_1())

    def changed(self, event: TransactionEvent) -> None:
        self.changes.append(event.update)

    def save_soon(self) -> None:
        if not self.saving:
            self.saving = True
            self.ctx.wait_until(self.save())

    async def save(self) -> None:
        await self.ctx.sleep(SAVE_AFTER_S)
        self.saving = False
        snapshot = self.document.get_update()
        self.bytes = len(snapshot)
        self.ctx.storage.sql.exec("INSERT OR REPLACE INTO snapshot (id, document) VALUES (0, ?)", snapshot)

    def hear(self, connection: Connection, clients: dict[int, Presence]) -> None:
        """Tell everybody what is new. What is not goes to its sender alone, whose provider takes silence for an end."""
        nobody = Presence(-1, "null")
        known = {client: self.present[client][0] if client in self.present else nobody for client in clients}
        fresh = {
            client: one
            for client, one in clients.items()
            if one.clock > known[client].clock or (one.state == "null" and one.clock == known[client].clock)
            if one.state != "null" or known[client] is not nobody
        }
        told = {client: one for client, one in fresh.items() if one.state != "null"}
        before = dict(connection.state or {})
        kept = {client: one for client, one in before.items() if client not in fresh} | {
            client: list(one) for client, one in told.items()
        }
        connection.set_state(kept)  # raises over 16 KiB: then nobody hears it
        for client in fresh:
            self.present.pop(client, None)
        self.present |= {client: (one, connection) for client, one in told.items()}
        if fresh:
            self.broadcast(awareness_frame(fresh))
        else:
            connection.send(awareness_frame(clients))

    def left(self, connection: Connection) -> None:
        self.batches.pop(connection, None)
        told = {client: Presence(*one) for client, one in (connection.state or {}).items()}
        nowhere = (None, connection)  # its end has woken the room
        gone = {client: one for client, one in told.items() if self.present.get(client, nowhere)[1] == connection}
        for client in gone:
            self.present.pop(client, None)
        if gone:
            self.broadcast(awareness_frame({client: Presence(one.clock, "null") for client, one in gone.items()}))

    def unbatched(self, connection: Connection, message: Frame) -> bytes | None:
        """The Yjs frame that a message is or completes."""
        batch = self.batches.get(connection)
        if isinstance(message, bytes):
            if batch is None:
                return message
            batch.add(message)
            return None
        if not message.startswith(BATCH):
            return None
        try:
            marker = json.loads(message.removeprefix(BATCH))
        except (ValueError, RecursionError) as error:
            raise Malformed("a batch marker that is no JSON") from error
        if not isinstance(marker, dict):
            raise Malformed("a batch marker that is no object")
        if marker.get("type") == "start":
            self.batches.pop(connection, None)
            new = Batch(marker)
            if sum(one.size for one in self.batches.values()) + new.size > MAX_BATCHES_BYTES:
                connection.close(1013, "too many batches at once")
                return None
            self.batches[connection] = new
            return None
        if batch is None:
            connection.close(1012, "the batch was lost")  # the room slept meanwhile: the client comes back and syncs
            return None
        del self.batches[connection]
        return batch.end(marker)
