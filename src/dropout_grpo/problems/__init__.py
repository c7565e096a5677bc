"""Problem files, answers and rewards."""
