# One worker with one namespace of objects, SQLite files in the folder given as `--directory-path=objects=...`.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "rooms", worker = .rooms),
    (name = "objects", disk = (writable = true)),
  ],
  sockets = [(name = "http", http = (), service = "rooms")],
);

const rooms :Workerd.Worker = (
  modules = [(name = "room", esModule = embed "node_modules/.torpor/load_room.js")],
  compatibilityDate = "2026-11-01",
  durableObjectNamespaces = [(className = "Main", uniqueKey = "torpor-peer", enableSql = true)],
  durableObjectStorage = (localDisk = "objects"),
  bindings = [(name = "Main", durableObjectNamespace = "Main")],
);
