"""What things are: agents, tasks, messages, and the facts that tell of them. No I/O, no clock."""
