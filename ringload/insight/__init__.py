"""Insight: statistics, reports, the command line."""
