"""What both trainers share: loop, checkpoints, optimiser and schedule, memory, callbacks, signals, progress."""
