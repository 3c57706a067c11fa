"""IntraCL of the low band and InterCL of the high band."""
