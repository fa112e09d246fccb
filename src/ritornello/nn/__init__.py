"""Layers: compositions of unfoldings."""

from ritornello.nn.compose import Bidirectional, Residual, Stack

__all__ = ["Bidirectional", "Residual", "Stack"]
