"""The mathematics of diffusion: torch only."""
