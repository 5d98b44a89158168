"""A local server of optuna-dashboard that serves the artifacts of all runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage

from optuna_miha._report.run_artifacts import RunArtifacts
from optuna_miha._results.optional_imports import try_import


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, so that the printed address stays visible."""


def serve(storage: BaseStorage, *, port: int, announce: Callable[[str], None]) -> None:
    """Serve optuna-dashboard on the loopback interface until interrupted.

    Args:
        storage: The storage to show.
        port: The port to listen on; 0 selects any free port.
        announce: Called with the address when the server listens.

    Raises:
        ImportError: If optuna-dashboard is not installed.
        ValueError: If the port is in use or invalid.
    """
    extra = "'optuna-miha[dashboard]'"
    with try_import("optuna-dashboard", needed_by="The dashboard", install=extra):
        dashboard = importlib.import_module("optuna_dashboard")
    app = dashboard.wsgi(storage, artifact_store=RunArtifacts(storage))
    try:
        server = make_server(
            "127.0.0.1", port, app, server_class=_Server, handler_class=_QuietHandler
        )
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"The port must be free, got {port} ({error}): pass another --port, or 0 for any."
        ) from error
    with server:
        announce(f"http://127.0.0.1:{server.server_port}/dashboard/")
        server.serve_forever()
