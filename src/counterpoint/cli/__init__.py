"""The command line. Modules here import nothing heavy at the top, so that every ``--help`` answers at once."""
