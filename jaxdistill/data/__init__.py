"""Where questions come from, and in which order."""
