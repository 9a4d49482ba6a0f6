"""The command ``evonorm``: parsers only, a file for each subcommand. Nothing imports it."""
