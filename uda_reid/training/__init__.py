"""Loops, features and checkpoints: what every training shares."""
