"""Classifiers on a representation that is already trained."""
