"""Recipes, the flow that runs them, and the command line."""
