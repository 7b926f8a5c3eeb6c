"""Text encoders: a prompt to token states."""
