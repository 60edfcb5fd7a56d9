"""Replaying recorded outputs of official scorers against ours: `python -m harmon.evaluation.vectors DIR`."""
