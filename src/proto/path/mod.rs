//! Path selection: candidates, probes, trust and suspicion.
