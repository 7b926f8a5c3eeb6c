"""Words: what a person asks for and gets back, settings, errors. No torch."""
