"""Several processes of one run: identity and messages, shares of work, sharded weights."""
