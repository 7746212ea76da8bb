"""Whole jobs, end to end: the demonstration, the record behind a report."""
