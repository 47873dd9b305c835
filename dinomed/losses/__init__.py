"""Losses: pure functions with thin modules around them."""
