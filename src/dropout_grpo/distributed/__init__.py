"""A run of several processes: ranks and messages, shares of the work, sums of gradients, sharded weights."""
