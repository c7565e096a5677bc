"""Loads models from folders and saves them."""
