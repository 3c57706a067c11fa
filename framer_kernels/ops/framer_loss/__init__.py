"""The FRAMER loss of all layers."""
