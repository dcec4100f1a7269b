"""The commands, one module each. User errors end as one line and exit code 2."""
