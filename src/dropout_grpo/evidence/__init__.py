"""Everything that proves the method: checks, benchmarks, studies, and the pages made from them."""
