"""Single-instance stateful objects: one instance per id, storage of its own, alarms, calls, WebSockets that outlive it.

    events ─▶ host ─▶ instance ─▶ input gate ─▶ user code ─▶ storage ─▶ commits ─▶ storage engine (durable)
                                                    └▶ answers, frames, calls ─▶ output gate ◀───┘ opens

Runs user code and knows no sockets: connections, storage engine, alarm store, placement and time are ports
(`ports`), filled by `embedded` in one process with SQLite, and by others in a cluster.

Non-goals: HTTP and WebSocket protocols, routing by URL, who may call what.

Where to look:

| to change | open |
|---|---|
| what a class of objects gets and may define | `state`, `storage`, `sql`, `kv`, `websocket`, `http` |
| how objects are named and called | `ids`, `namespace`, `rpc`, `codec`, `failures`, `pipe` |
| when an object wakes, hibernates, is evicted or reset | `host`, `instance`, `mailbox`, `blockers`, `limits` |
| what runs when, and what may leave when | `gates`, `tasks`, `scope`, `watchdog` |
| when a write is durable | `commits`, `sqlite`, `embedded` |
| alarms and their retries | `alarms`, `alarmstore` |
| restore points | `history` |
| what each message costs | `_step`, `firststep` |
| what is counted; memory that goes back to the system | `metering`; `memory` |
| HTTP in and out | `fetch`: the only module that knows Starlette |

What survives: hibernation and eviction keep storage, alarms and all that `ports.Connections` holds; a reset keeps
storage and alarms as of the last commit; `kill -9` and power loss keep everything that was acknowledged.
"""

from objects.alarms import AlarmInfo
from objects.clock import ManualClock
from objects.embedded import LocalDrivers
from objects.host import ObjectHost
from objects.http import HttpRequest, HttpResponse
from objects.ids import ObjectId
from objects.limits import Limits
from objects.namespace import ObjectNamespace, ObjectStub
from objects.rpc import RpcTarget
from objects.state import DurableObject, ObjectState
from objects.websocket import WebSocket

__all__ = [
    "AlarmInfo",
    "DurableObject",
    "HttpRequest",
    "HttpResponse",
    "Limits",
    "LocalDrivers",
    "ManualClock",
    "ObjectHost",
    "ObjectId",
    "ObjectNamespace",
    "ObjectState",
    "ObjectStub",
    "RpcTarget",
    "WebSocket",
]
