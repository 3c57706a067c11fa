"""FRAMER: frequency-aligned self-distillation for diffusion models."""
