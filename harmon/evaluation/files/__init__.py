"""Readers of the forms that benchmarks are published in: nothing here knows any benchmark."""
