"""The run folder: the one owner of its format, with one writer (``folder``) and one reader (``read``)."""
