"""Noise couplings for action-sequence diffusion policies and for image diffusion."""

__version__ = "0.1.0"
