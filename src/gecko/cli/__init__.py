"""The command line. Thin: a command reads options, calls the library and prints; heavy imports are inside the commands."""
