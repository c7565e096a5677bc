"""Evidence for the method: checks of the theory, benchmarks, studies, and the pages made from them."""
