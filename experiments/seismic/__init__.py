"""The parts of the experiment `fista`: a survey, what is done to it, and the figures."""
