"""A server for one microscope: a page, Neuronpedia's graph contract, circuit-tracer's paths, one queue, one database."""
