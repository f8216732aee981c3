"""The client loop of RFC 6281 §5: map a port, publish where the machine is, watch where the others are.

Pure cores (identity, natpmp_client, updates, llq_client, tunnels, probe) take time and entropy as arguments; thin
asyncio drivers (nat, resolver, streams, publisher, watcher, agent) own the sockets. Never imports the other roles.
"""
