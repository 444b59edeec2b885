"""``coord top``: the live screen of a cell. ``feed`` reads, ``rows`` formats, ``app`` shows and acts."""
