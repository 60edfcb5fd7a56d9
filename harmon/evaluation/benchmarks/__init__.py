"""One file for each family of benchmarks: where its published files lie, and what they say."""
