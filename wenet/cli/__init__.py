"""The commands, one a module. Every mistake ends as one line and exit code 2."""
