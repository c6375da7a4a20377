"""The parts of the experiment `rnn`."""
