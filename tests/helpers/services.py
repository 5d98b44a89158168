"""Real services on loopback for tests: PostgreSQL, S3 (moto) and a Dask cluster."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import dask
import distributed
import psycopg
import pytest
from moto.server import ThreadedMotoServer
from optuna.artifacts import Boto3ArtifactStore
from optuna.storages import RDBStorage

LOOPBACK = "127.0.0.1"


class PostgreSQL:
    """A running PostgreSQL cluster.

    Args:
        port: The port on which the server listens.
        start: Starts the server.
        stop: Stops the server at once, also with open connections.
    """

    def __init__(self, port: int, *, start: Callable[[], None], stop: Callable[[], None]) -> None:
        self._port = port
        self.start = start
        self.stop = stop

    def new_database(self) -> str:
        """Create an empty database; returns its URL for SQLAlchemy."""
        name = f"d{uuid.uuid4().hex}"
        address = f"tests@{LOOPBACK}:{self._port}"
        url = f"postgresql://{address}/postgres"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{address}/{name}"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A new PostgreSQL cluster, removed at the end; skips the test if PostgreSQL is missing."""
    programs = _postgresql_programs()
    account = _postgresql_account()
    # Not in pytest's folder, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="optuna-miha-postgresql-"))
    if "user" in account:
        os.chown(folder, account["user"], account["group"])

    def call(program: str, *arguments: str) -> None:
        # Output goes to a file, because the server inherits it and would keep a pipe open.
        with (folder / "output.log").open("a+") as output:
            completed = subprocess.run(
                [programs / program, "-D", folder / "data", *arguments],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                **account,
            )
            output.seek(0)
            assert completed.returncode == 0, f"{program} failed:\n{output.read()}"

    try:
        call("initdb", "-A", "trust", "-U", "tests", "-E", "UTF8", "--no-locale", "--no-sync")
        port = _free_port()
        settings = {"listen_addresses": LOOPBACK, "unix_socket_directories": "''", "fsync": "off"}
        options = [f"-p {port}", *(f"-c {name}={value}" for name, value in settings.items())]

        def start() -> None:
            call("pg_ctl", "-w", "-o", " ".join(options), "start")

        def stop() -> None:
            call("pg_ctl", "-w", "-m", "immediate", "stop")

        start()
        try:
            yield PostgreSQL(port, start=start, stop=stop)
        finally:
            stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def rdb_storage(url: str) -> Iterator[RDBStorage]:
    """Optuna's storage of a database, whose connections are closed at the end."""
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _postgresql_programs() -> Path:
    """The folder of ``initdb`` and ``pg_ctl``, which is not on the path in Debian."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(debian, key=lambda path: float(path.parent.name), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    pytest.skip(
        "The PostgreSQL server is missing: initdb and pg_ctl are neither on the path nor in "
        "/usr/lib/postgresql/*/bin. Install it, for example with `apt-get install postgresql`."
    )


def _postgresql_account() -> dict[str, Any]:
    """Arguments of :func:`subprocess.run` for a user other than root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip(
        "PostgreSQL refuses to run as root, and the users postgres and nobody do not exist: run "
        "the tests as another user."
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


class S3:
    """An S3 server.

    Args:
        endpoint: The URL of the server.
    """

    def __init__(self, endpoint: str) -> None:
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
        )

    def new_store(self) -> Boto3ArtifactStore:
        """Create an artifact store in an empty bucket."""
        bucket = f"bucket-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=bucket)
        return Boto3ArtifactStore(bucket, client=self.client)

    def keys(self, store: Boto3ArtifactStore) -> list[str]:
        """The keys in the bucket."""
        page = self.client.list_objects_v2(Bucket=store.bucket)
        assert not page["IsTruncated"]
        return [item["Key"] for item in page.get("Contents", [])]


@contextmanager
def s3() -> Iterator[S3]:
    """An S3 server in a thread of this process, accessed over HTTP."""
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        service = S3(f"http://{host}:{port}")
        try:
            yield service
        finally:
            service.client.close()
    finally:
        server.stop()


@contextmanager
def dask_cluster() -> Iterator[distributed.Client]:
    """A client of two worker processes over TCP. A worker that dies is restarted.

    A job that has killed two workers fails; Dask's default is four.
    """
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        tempfile.TemporaryDirectory(prefix="optuna-miha-dask-") as folder,
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host=LOOPBACK,
            protocol="tcp://",
            dashboard_address=None,
            local_directory=folder,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
