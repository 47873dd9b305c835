"""Ignite handlers: attach, log and save; no maths."""
