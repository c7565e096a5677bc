"""The paper's claims, verified numerically with the library's own functions; ``docs/theory.md`` is made from this."""
