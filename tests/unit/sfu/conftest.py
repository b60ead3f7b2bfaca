from __future__ import annotations

from collections.abc import Callable

import pytest

from sfu.dtls import DtlsContext
from sfu.messages import SessionId
from sfu.router import Router
from sfu.session import Session
from sfu.settings import SfuSettings
from sfu.transport import Transport
from tests.support.fake_plane import FakePlane

CONTEXT = DtlsContext()


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane()


@pytest.fixture
def router(plane: FakePlane) -> Router:
    return Router(plane)  # type: ignore[arg-type]


MakeSession = Callable[..., Session]


@pytest.fixture
def make_session(plane: FakePlane, router: Router) -> MakeSession:
    def make(name: str = "a", *, app: str = "app", now: float = 0.0, **settings: object) -> Session:
        return Session(
            app,
            SessionId(name),
            plane=plane,  # type: ignore[arg-type]
            router=router,
            transport=Transport(plane, CONTEXT, now=now),  # type: ignore[arg-type]
            candidates=("1 1 udp 2130706431 127.0.0.1 40000 typ host",),
            settings=SfuSettings(**settings),  # type: ignore[arg-type]
            now=now,
        )

    return make
