"""The sockets' home: connections outlive the object instances they talk to."""
