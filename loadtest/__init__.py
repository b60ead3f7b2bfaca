"""Load tests: Locust users for rooms, media and TURN, profiles, reports. Speaks to servers only over the network.

    locust -f loadtest/locustfile.py --profile rooms        `torpor load rooms` is the short way

What runs where: users, statistics and shapes in Locust's process (gevent), all traffic and all clocks in an engine
process beside it (asyncio); they meet in `engine.remote` and `engine.server` alone. `docs/loadtest.md` has the picture.

Where to look: what people write tests with, `users.py`; named loads, `profiles.py`, `locustfile.py`, `shapes.py`; what
is measured and when, `observer.py`; whether it counts, `verdict.py`; the record of a run and its numbers, `record.py`;
pages, `report.py`, `svg.py`, `webui.py`; `torpor load`, `command.py`, `runs.py`; traffic, `engine/`, `media/`; servers
compared, `peers/`. Only `users`, `locustfile`, `shapes`, `observer`, `webui`, `engine.remote` import Locust or gevent.
"""
