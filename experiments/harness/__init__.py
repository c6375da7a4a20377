"""What every experiment shares: command line, run folder, progress, figures."""
