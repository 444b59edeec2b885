"""The HTTP gateway: for callers who do not speak Redis. Decode, one call of the SDK, encode; it owns no state.

It appends the same facts and reads the same records as every client, so any number of gateways may run, and one that
is killed loses nothing that it has answered for.
"""
