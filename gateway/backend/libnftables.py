"""libnftables in this process: commands as text, without a program started for each (0.1 ms instead of 2 ms)."""

from __future__ import annotations

from typing import Any, Final

from cffi import FFI

LIBRARY: Final = "libnftables.so.1"
_DECLARATIONS: Final = """
struct nft_ctx *nft_ctx_new(uint32_t flags);
void nft_ctx_free(struct nft_ctx *context);
int nft_ctx_buffer_output(struct nft_ctx *context);
int nft_ctx_buffer_error(struct nft_ctx *context);
const char *nft_ctx_get_output_buffer(struct nft_ctx *context);
const char *nft_ctx_get_error_buffer(struct nft_ctx *context);
void nft_ctx_output_set_flags(struct nft_ctx *context, unsigned int flags);
int nft_run_cmd_from_buffer(struct nft_ctx *context, const char *buffer);
"""
_JSON: Final = 1 << 4
_NUMERIC: Final = 1 << 7 | 1 << 8 | 1 << 9
_TERSE: Final = 1 << 11


class NftablesError(Exception):
    """A command was not carried out; the text is libnftables' first line about it."""


class Nftables:
    """A libnftables context in the network namespace it was made in. Not for several threads.

    The constructor raises `NftablesError` if the library is not there. Open a netlink socket of netfilter first:
    where none can be had, the library ends the process.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        self._ffi = FFI()
        self._ffi.cdef(_DECLARATIONS)
        try:
            self._library: Any = self._ffi.dlopen(library)
        except OSError:
            raise NftablesError(f"{library} is not installed (Debian: apt install libnftables1)") from None
        self._context: Any = self._library.nft_ctx_new(0)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the context; nothing may be run after that."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: str) -> None:
        """Carry out commands as one transaction: all of them or, with `NftablesError`, none."""
        self._run(commands, 0)

    def list_json(self, what: str) -> str:
        """`list` something as JSON, protocols as numbers."""
        return self._run(f"list {what}", _JSON | _NUMERIC)

    def list_terse(self, what: str) -> str:
        """`list` something as text without the elements of sets and maps."""
        return self._run(f"list {what}", _TERSE | _NUMERIC)

    def _run(self, commands: str, flags: int) -> str:
        library, context = self._library, self._context
        library.nft_ctx_output_set_flags(context, flags)
        failed = library.nft_run_cmd_from_buffer(context, commands.encode("ascii")) != 0
        # Both buffers are fetched each time: that is what empties them.
        output: bytes = self._ffi.string(library.nft_ctx_get_output_buffer(context))
        errors: bytes = self._ffi.string(library.nft_ctx_get_error_buffer(context))
        if failed:
            first_line = errors.decode("utf-8", "replace").strip().split("\n", 1)[0]
            raise NftablesError(first_line or "libnftables gave no reason")
        return output.decode("utf-8", "replace")
