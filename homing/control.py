"""The client of a running server's control socket: one HTTP/1.0 request over a Unix socket."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final

from homing.running import OperationError

SECONDS: Final = 10.0


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, page: str) -> Any:
    """The JSON of a page, such as `/status`; `OperationError` in a plain line when no server answers there."""
    connection = _SocketConnection(path)
    try:
        connection.request("GET", page)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != http.HTTPStatus.OK:
            raise OperationError(f"the server at {path} says {reply.status} to {page}")
        return json.loads(body)
    except PermissionError:
        raise OperationError(f"{path} is not yours to open: ask as the user that the server runs as") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise OperationError(f"no server answers at {path}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OperationError(f"the server at {path} gives no answer: {error}") from None
    finally:
        connection.close()
