"""Schedules: which steps to compute and how to predict the others, searched from a few measured runs."""
