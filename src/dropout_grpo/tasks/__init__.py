"""The built-in tasks: generators of problems, and the tokenizer that they share."""
