"""UPnP InternetGatewayDevice:1, or :2, in front of the mapping table.

`services` says what there is, `description` writes it down, `ssdp` makes it found, `soap` reads and writes calls,
`actions` carries them out, `events` keeps subscriptions: all of them pure. `http`, `notifier` and `device` are sockets.
"""
