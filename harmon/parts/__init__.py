"""Tiny pre-trained parts of the demo, and the scripts that trained them (CARDS.md says how well)."""
