"""Which worker serves a request: D2LPM, Preble and baselines. Pure, like the policies."""
