"""The HTTP gateway, for callers without Redis. A handler decodes, makes one SDK call and encodes; it owns no state.

The gateway appends the same facts and reads the same records as every client. So any number of gateways may run, and a
killed gateway loses nothing that it has acknowledged.
"""
