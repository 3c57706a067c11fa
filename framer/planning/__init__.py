"""What a configuration takes in memory, operations and communication, worked out without a GPU."""
