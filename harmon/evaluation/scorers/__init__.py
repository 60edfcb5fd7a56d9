"""Scores of published benchmarks: pure functions that agree with each benchmark's official code.

One benchmark a file. Every function names the official function that it agrees with, and every variant that papers
mix up has its own name. The functions read no files and hold no state; what a score needs of an item stands in that
file's `Answer`. `counts` holds how many items each benchmark has: a score over another number is refused unless it
is said to be of a part (`partial`, `--limit`).
"""
