"""A language model as the judge of answers (Zheng et al. 2023, arXiv 2306.05685), on FastChat's files."""
