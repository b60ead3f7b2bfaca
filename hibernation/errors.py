"""Errors of `hibernation`, besides those that its ports name (`objects.errors`).

HibernationError
└── LinkError    the link between the sockets' process and an objects' process carries something that is not ours
"""

from __future__ import annotations


class HibernationError(Exception):
    """Base of all errors here."""


class LinkError(HibernationError):
    """The stream is not what the other side writes, or a value is too large for it: give the link up."""
