"""Low-rank adapters on a latent model."""
