"""Batches of views."""
