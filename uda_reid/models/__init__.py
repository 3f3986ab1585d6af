"""Encoders and what sits on them while training."""
