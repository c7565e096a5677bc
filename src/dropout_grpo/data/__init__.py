"""Problems: file formats, answers and rewards."""
