"""Why we believe it; mirrors the tree."""
