"""Words on the wire: pure codecs, no I/O, clocks, entropy or SQL (DESIGN §2)."""
