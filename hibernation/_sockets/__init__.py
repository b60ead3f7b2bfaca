"""The socket table: `table.pyi` is its contract; read `layout.pxd` for a row, then `rows`, `outgoing`, `table`."""
