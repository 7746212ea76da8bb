"""The problem as a value, class counts, what is known of a training, files and records. Imports no other room."""
