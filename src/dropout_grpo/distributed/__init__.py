"""A run of several processes: ranks and messages, division of the work, sharded weights."""
