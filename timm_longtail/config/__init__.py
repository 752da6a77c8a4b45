"""Options of the command line and recipes."""
