"""Monitors for other people's training loops."""
