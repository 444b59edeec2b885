"""``coord up``: runs a cell on this machine: a Redis server, workers, a gateway and agents."""
