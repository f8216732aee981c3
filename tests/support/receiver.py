"""A receiver of webhooks on loopback: a real HTTP server that does as a test says, and keeps what it was sent."""

import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks.webhooks import Webhook

Answer = Callable[[int], int]
"""Status code for the n-th request (from 0); 0 drops the connection, a negative one waits so many seconds first."""


@dataclass(slots=True)
class Receiver:
    """`requests` has (headers, body) of every request, `taken` the events of those answered 2xx, verified."""

    secret: str
    port: int = 0
    answer: Answer = lambda number: 204
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.taken if event["type"] == kind]

    def wait(self, what: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (self.taken[-5:], self.problems, len(self.requests))
            time.sleep(0.02)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """The signature is judged by the library of those who wrote the form down."""
        self.requests.append((headers, body))
        code = self.answer(len(self.requests) - 1)
        try:
            said = Webhook(self.secret).verify(body, headers)
        except Exception as error:
            self.problems.append(repr(error))
            return 400
        if said != json.loads(body) or said["type"] != "homing.events":
            self.problems.append(repr(said))
        if 200 <= code < 300:
            self.taken += said["data"]["events"]
        return code


@contextmanager
def start_receiver(secret: str, *, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Until the block ends, on a free port unless one is given."""
    receiver = Receiver(secret)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code = receiver.take({name.lower(): value for name, value in self.headers.items()}, body)
            if code == 0:
                self.close_connection = True
                return
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
