"""Scores of a trained Harmon from ground truth."""
