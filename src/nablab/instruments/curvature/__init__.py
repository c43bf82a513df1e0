"""Second derivatives: products, spectra, traces, exact matrices, critical points."""
