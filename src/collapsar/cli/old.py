"""The command line: arguments, JSON, exit codes; nothing else."""
