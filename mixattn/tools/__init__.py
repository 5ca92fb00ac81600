"""Shared tools: command lines, atomic file writes, baseline processes, memory checks for absent chips."""
