"""The annotation store on a real PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import sqlalchemy as sa
from tracking_servers import postgres

from src.store import Store

pytestmark = pytest.mark.slow
ROUNDS, AT_ONCE = 5, 8


def test_those_who_open_a_fresh_store_at_once_do_not_race() -> None:
    with postgres() as address:
        engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for n in range(ROUNDS):
                connection.exec_driver_sql(f"CREATE DATABASE round{n}")
        engine.dispose()
        for n in range(ROUNDS):
            fresh = address.rpartition("/")[0] + f"/round{n}"
            all_there = Barrier(AT_ONCE)

            def open_it(_: int, fresh: str = fresh, all_there: Barrier = all_there) -> int:
                all_there.wait()
                store = Store(fresh)
                try:
                    return len(list(store.read(task="t")))
                finally:
                    store.close()

            with ThreadPoolExecutor(AT_ONCE) as together:
                assert list(together.map(open_it, range(AT_ONCE))) == [0] * AT_ONCE
