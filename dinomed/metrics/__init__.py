"""Metrics: pure functions with thin modules around them."""
