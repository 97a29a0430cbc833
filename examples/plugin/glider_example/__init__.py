"""A router, a signal, an embedder and a describer for glider."""
