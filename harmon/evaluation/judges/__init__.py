"""Judges of drawn pictures: models behind an OpenAI-compatible API that score WISE and answer DPG-Bench's questions."""
