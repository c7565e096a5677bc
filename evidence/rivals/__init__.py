"""Other sources of exploration that the study compares with: plug-ins, named by import path as a user's own are."""
