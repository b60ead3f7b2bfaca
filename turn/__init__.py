"""TURN (RFC 8656) and STUN (RFC 8489) server."""
