"""Commands with options of their own (`parity.cli.OWN`)."""
