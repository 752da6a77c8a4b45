"""One training run: how it is built, its loop, its state, and what it writes."""
