"""The DeepSpeed trainer."""
