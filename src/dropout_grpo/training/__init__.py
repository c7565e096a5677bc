"""What both trainers share: session, checkpoints, optimiser and schedule, precision, memory, signals, progress."""
