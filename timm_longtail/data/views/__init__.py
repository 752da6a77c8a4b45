"""What becomes of an image before the network sees it."""
