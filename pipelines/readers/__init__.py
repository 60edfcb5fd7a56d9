"""Readers of published datasets, one for each layout; all give rows of one form."""
