"""The statistics of pairwise votes: numpy and scipy, no clock, no network."""
