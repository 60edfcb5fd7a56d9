"""Three-stage training: stages, mixture, draws, data, optimiser, checkpoints, the loop and its launch on
Ray.
"""
