"""Tools of the whole house: command lines, whole-file writes, baseline processes, memory fits."""
