"""``coord demo``: a cell with agents in a temporary folder, and a tour of what coord does with them."""
