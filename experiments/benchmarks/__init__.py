"""Side-by-side timings against other libraries; never part of the tests."""
