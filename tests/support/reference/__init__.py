"""Slow versions written from the papers, which the tests compare the package with."""
