"""Seismic data: wavelets, forward models, inversion, SEG-Y files. Traces are `[trace, time]`; units s, Hz, m, degrees."""
