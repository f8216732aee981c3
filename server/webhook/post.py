"""One POST over HTTP or HTTPS, by aiohttp: bounded in time and in what is read, to the one URL and nowhere else."""

import ssl
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

POST_SECONDS: Final = 10.0
_READ_OCTETS: Final = 4096  # of an answer, so that the connection can be used again


class PostError(Exception):
    """It was not taken; the text is one plain line for the operator."""


class Poster:
    """Keeps a connection to one URL. `PostError` from the constructor when aiohttp or the CA file is missing."""

    def __init__(self, url: str, ca_file: Path | None) -> None:
        try:
            import aiohttp
        except ImportError:
            raise PostError("[webhook] needs aiohttp: pip install 'homing[webhook]'") from None
        self._aiohttp: Any = aiohttp
        self._url = url
        self._session: Any = None
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise PostError(f"[webhook] ca_file {ca_file}: {error}") from None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Done when the receiver answered 2xx; `PostError` for everything else."""
        aiohttp = self._aiohttp
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=1, ssl=self._tls),
                timeout=aiohttp.ClientTimeout(total=POST_SECONDS),
                headers={"User-Agent": f"homing/{version('homing')}"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.content.read(_READ_OCTETS)
                code = int(answer.status)
        except TimeoutError:
            raise PostError(f"no answer in {POST_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PostError(str(error) or type(error).__name__) from None
        if not 200 <= code < 300:
            more = ", and redirects are not followed" if 300 <= code < 400 else ""
            raise PostError(f"it answered {code}{more}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
