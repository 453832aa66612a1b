"""One module a command, or a few that are alike."""
