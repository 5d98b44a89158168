"""A local server of optuna-dashboard that serves the artifacts of all runs."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage

from optuna_miha._history.optional_imports import try_import
from optuna_miha._report.run_artifacts import RunArtifacts

_STUDY_PATH = re.compile(r"/api/studies/\d+")

_STYLE = (
    b"<style>.MuiBox-root{min-width:0}"
    b".MuiTypography-root{overflow-wrap:anywhere;white-space:normal}"
    b".MuiDrawer-root .MuiTypography-root{white-space:nowrap}</style>"
)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, so that the printed address stays visible."""


def readable(app: Any) -> Any:
    """Wrap the application of optuna-dashboard, which is not prepared for long runs.

    Long attributes would make the page of a trial wider than the screen, and figures would
    change their places with every start of the server.

    Args:
        app: The WSGI application.
    """

    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        is_page = path.startswith("/dashboard")
        if not is_page and not _STUDY_PATH.fullmatch(path):
            response: Iterable[bytes] = app(environ, start_response)
            return response
        started: list[Any] = []
        parts = app(environ, lambda *args: started.append(args))
        body = b"".join(parts)
        status, headers, *rest = started[0]
        if status.startswith("200"):
            body = body.replace(b"</head>", _STYLE + b"</head>") if is_page else _sorted(body)
        kept = [(k, v) for k, v in headers if k.lower() != "content-length"]
        start_response(status, [*kept, ("Content-Length", str(len(body)))], *rest)
        return [body]

    return wrapped


def _sorted(body: bytes) -> bytes:
    """The JSON of a study with its figures in the order of their ids."""
    study = json.loads(body)
    if isinstance(study, dict) and isinstance(study.get("plotly_graph_objects"), list):
        study["plotly_graph_objects"].sort(key=lambda figure: figure["id"])
    return json.dumps(study).encode()


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
    app = readable(dashboard.wsgi(storage, artifact_store=RunArtifacts(storage)))
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
