"""Single-instance stateful objects: ids, stubs, gates, storage, alarms, host. Knows no sockets."""
