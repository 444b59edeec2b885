"""``coord up``: a cell on this machine, which is a Redis server, its workers, a gateway and agents, kept running."""
