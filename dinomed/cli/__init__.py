"""The `dinomed` command, one file per verb."""
